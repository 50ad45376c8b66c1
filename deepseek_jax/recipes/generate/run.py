"""Data from a teacher (arXiv:2501.12948, section 2.4 and appendix B.3.3): what distillation learns from.

questions -> more of them, by rule and by the teacher -> n answers each, rewarded -> the good ones, as a
dataset for recipes.sft -> a report of what each filter removed.
"""

import contextlib
import dataclasses
import json

import jax

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.data.questions import distinct, evaluation_texts, read_questions
from deepseek_jax.errors import at
from deepseek_jax.models import RunSettings, build_model
from deepseek_jax.parallel.mesh import group_mesh
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.start import starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.rollout.policy import check_room, ending_turns, fitting, load_policy
from deepseek_jax.settings import build
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import write_sifted
from deepseek_jax.synthesis.teacher import Teacher, check_opening
from deepseek_jax.training.lineage import Formerly, as_given, run_stage
from deepseek_jax.worlds.registry import find_questions, named_tokenizer, open_rewards

SETTINGS = GenerateSettings
REDOES_WHAT_CHANGED = True  # other filters go on from the samples that are there


def run(settings, run):
    """Run the recipe, or what is left of it. settings: GenerateSettings. run: training.run.Run.

    Each of several processes, or groups of config.teacher_processes, answers its own share of the prompts, on
    a mesh of its own devices.
    """
    with contextlib.ExitStack() as opened, at("config"):
        with at("teacher_processes"):
            own = group_mesh(run.mesh, settings.teacher_processes)
        rewards = opened.enter_context(_rewards(settings, own))
        questions, held_out = _questions(settings)
        with at("rewards"):
            rewards.check(questions)
        measured_on = _measured_on(settings, held_out)
        evaluation = Evaluation(*measured_on, settings.keep.ngram) if any(measured_on) else None
        load, parent = _checkpoint(settings, run, own, questions)
        with jax.set_mesh(own):
            asking = _Asking(settings, Teacher(settings, load, own, run.should_stop), parent, run)
            examples, fates = augmented(settings, questions, evaluation, asking)
            n = settings.sampling.samples_per_prompt
            samples = asking("samples", examples, n, rewards)
        inputs = {"settings": [settings.keep, settings.accuracy]}
        inputs |= {"parent": asking.hashes["samples"], "data": measured_on}

        def write(folder):
            write_sifted(settings, samples, evaluation, folder)

        run_stage(run.folder, "dataset", inputs, write)
    _report(run.folder, fates)


def _rewards(settings, mesh):
    """The rewards of the samples, trained ones among them."""
    with at("reward_models"):
        models = load_model_rewards(settings.reward_models, mesh)
    with at("rewards"):
        return open_rewards(settings.rewards, models=models)


class _Asking:
    """Has the teacher answer examples, once: asking(name, examples, n, rewards) -> the folder of its chunks.

    hashes: name -> the hash of all that its answers depend on.
    """

    def __init__(self, settings, teacher, parent, run):
        self.settings, self.teacher, self.parent, self.run = settings, teacher, parent, run
        self.hashes = {}

    def __call__(self, name, examples, n=1, rewards=None):
        def make(folder):
            prompts = _prompts(self.settings, self.teacher.policy, examples)
            self.teacher.answer(folder, prompts, n=n, rewards=rewards)

        given = as_given(self.run.folder, "reward_models")
        sampling = _sampling(self.settings, n, rewards, given)
        inputs = {"settings": sampling, "parent": self.parent}
        self.hashes[name] = run_stage(self.run.folder, name, inputs | {"data": examples}, make)
        return self.run.folder / name


def _prompts(settings, policy, examples):
    """The examples with their prompt_ids, without those that are too long, which are counted."""
    with at("data"):
        prompts = policy.with_prompts(examples)
        check_opening(policy, prompts[0]["prompt_ids"])
    with at("sampling"):
        fits = fitting(prompts, settings.sampling.max_prompt_length, "generation")
        check_room(policy.config, fits, settings.sampling.max_completion_length)
    return fits


def _questions(settings):
    """(the questions to ask, the held-out ones of a task)."""
    data, held_out = settings.data, []
    with at("data"):
        if data.path is not None:
            questions = read_questions(data.path, data.split)
        else:
            _, asked = find_questions(data.task)
            task = asked.make(settings.seed, data.num_held_out)
            questions, held_out = distinct(task.train), task.held_out
    if data.num_prompts is not None and data.num_prompts > len(questions):
        raise ValueError(
            f"data.num_prompts={data.num_prompts} of {len(questions)} different questions; lower it"
        )
    return questions[: data.num_prompts], held_out


def _measured_on(settings, held_out):
    """(questions, solutions) of the evaluation sets that config.keep.decontaminate names."""
    questions, solutions = [], []
    for name in settings.keep.decontaminate:
        if name == "held_out":
            asked = [example["question"] for example in held_out]
            worked = [example.get("solution", example["answer"]) for example in held_out]
        else:
            with at("config.keep.decontaminate", "path"):
                asked, worked = evaluation_texts(name)
        questions, solutions = questions + asked, solutions + worked
    return questions, solutions


def _checkpoint(settings, run, own, questions):
    """(a function that reads the teacher's Policy, what stands for it in the lineage).

    A base is pre-trained on the mesh of all processes. questions: looked at before that.
    """
    if settings.init_from is not None:
        named = {"init_from": fingerprint(settings.init_from), "model": settings.model}
        named["tokenizer"] = settings.tokenizer
        how = build(RunSettings, settings.model, "model")
        return _loader(settings, settings.init_from, settings.tokenizer, how, own), named
    policy = starting_policy(settings, run.mesh, settings.data.template)
    policy = dataclasses.replace(policy, opening=settings.data.opening)
    _prompts(settings, policy, questions)  # for what it raises
    base, seed, params = settings.base, settings.seed, run.folder / "base" / "params"

    def train(folder):
        if not is_orbax(params):
            base_run = run.of("pretrain", folder / "pretrain")
            trained = train_base(policy.config, base, policy.tokenizer, base_run, seed)
            save_orbax(params, policy.config, trained)
            run.writer.close()

    model = build_model(settings.model)
    numbers = {"base": base, "model": model, "seed": seed}
    made = run_stage(run.folder, "base", {"settings": numbers}, train)
    return _loader(settings, params, base.corpus, RunSettings(), own), made


def _loader(settings, path, tokenizer, how, mesh):
    """A function that reads a Policy. tokenizer: the name of one, where the checkpoint has none."""

    def load():
        named = named_tokenizer(tokenizer) if is_orbax(path) and tokenizer else None
        options = dict(template=settings.data.template, tokenizer=named)
        policy = load_policy(path, how, mesh, **options)
        config = ending_turns(policy.config, policy.tokenizer, policy.template)
        return dataclasses.replace(policy, config=config, opening=settings.data.opening)

    return load


def _sampling(settings, n, rewards, reward_models):
    """What the samples of a stage depend on, beside the teacher and the questions.

    reward_models: the config's block, which records without a format have as it is.
    """
    data = settings.data
    shown = {"template": data.template, "opening": data.opening, "seed": settings.seed, "n": n}
    if rewards is not None:
        models = Formerly(settings.reward_models, {n: dict(m) for n, m in reward_models.items()})
        shown |= {"rewards": settings.rewards, "models": models}
    return shown | {"sampling": settings.sampling, "chunk": settings.chunk_size}


def _report(workdir, fates):
    """Print what became of questions and completions, and write workdir/report.json. Process 0 alone."""
    if not first_process():
        return
    completions = json.loads((workdir / "dataset" / "fates.json").read_text())
    report = {"questions": fates, "completions": completions}
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console = make_console()
    for what, counts in report.items():
        console.print(fates_table(f"what became of the {what}", counts))
    say(f"complete; for config.data.path of a fine-tuning: {dataset_folder(workdir / 'dataset')}")
