"""Generate a distillation data set with a teacher (arXiv:2501.12948, section 2.4 and appendix B.3.3).

questions -> add variants, by rule and by the teacher -> sample and score n answers to each -> write the good
ones as a dataset for recipes.sft -> report what each filter removed.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.data.questions import distinct, evaluation_texts, read_questions
from deepseek_jax.data.tokenizer import check_checkpoint
from deepseek_jax.errors import at
from deepseek_jax.files import read_json
from deepseek_jax.models import build_model, how_to_run
from deepseek_jax.parallel.mesh import group_mesh
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.pretrain.train import train_base
from deepseek_jax.recipes.start import check_slots, starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.rollout.policy import Policy, check_room, fitting, load_policy
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import write_sifted
from deepseek_jax.synthesis.teacher import Teacher, check_opening
from deepseek_jax.training.lineage import run_stage
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import find_questions, named_tokenizer, open_rewards

SETTINGS = GenerateSettings
# A changed config may resume in the same workdir: with other filters, the same samples are filtered again
REDOES_WHAT_CHANGED = True


def run(settings: GenerateSettings, run: Run):
    """Run the recipe, or resume it.

    With several processes, each group of config.teacher_processes answers its own share of the prompts, on a
    mesh of its own devices.
    """
    with contextlib.ExitStack() as opened, at("config"):
        with at("teacher_processes"):
            own = group_mesh(run.mesh, settings.teacher_processes)
        check_slots(settings, own)
        rewards = opened.enter_context(_rewards(settings, own))
        questions, held_out = _questions(settings)
        with at("rewards"):
            rewards.check(questions)
        measured_on = _measured_on(settings, held_out)
        evaluation = Evaluation(*measured_on, settings.keep.ngram) if any(measured_on) else None
        load, parent = _checkpoint(settings, run, own, questions)
        # launch has set the mesh of all processes; a teacher is on the devices of its own group
        with jax.set_mesh(own):
            asking = _Asking(settings, Teacher(settings, load, own, run.should_stop), parent, run)
            examples, fates = augmented(settings, questions, evaluation, asking)
            n = settings.sampling.samples_per_prompt
            samples = asking("samples", examples, n, rewards)
        # Filters are inputs of this stage alone: other filters sift the same samples again
        inputs = {"settings": [settings.keep, settings.accuracy]}
        inputs |= {"parent": asking.hashes["samples"], "data": measured_on}

        def write(folder):
            write_sifted(settings, samples, evaluation, folder)
            _log_kept(folder, run.writer)

        run_stage(run.folder, "dataset", inputs, write)
    _report(run.folder, fates)


def check_data(settings: GenerateSettings, mesh: Mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        questions, held_out = _questions(settings)
        measured_on, _ = _measured_on(settings, held_out)
    counts = f"{len(questions)} questions, and {len(measured_on)} of evaluations that they must not contain"
    return f"{counts}, such as {questions[0]['question']!r}"


def _rewards(settings: GenerateSettings, mesh: Mesh):
    """The Rewards that score the samples, with the trained reward models."""
    with at("reward_models"):
        models = load_model_rewards(
            settings.reward_models, mesh, settings.model.get("expert_buffer")
        )
    with at("rewards"):
        return open_rewards(settings.rewards, models=models)


class _Asking:
    """Stages in which the teacher answers examples: asking(name, examples, n, rewards) -> the chunks' folder.

    parent: the teacher's checkpoint for the lineage. hashes: name -> the stage's hash.
    """

    def __init__(self, settings: GenerateSettings, teacher: Teacher, parent, run: Run):
        self.settings, self.teacher, self.parent, self.run = settings, teacher, parent, run
        self.hashes = {}

    def __call__(self, name: str, examples: list, n: int = 1, rewards=None):
        def make(folder):
            # Inside make, because teacher.policy reads the checkpoint: a complete stage does not need it
            prompts = _prompts(self.settings, self.teacher.policy, examples)
            self.teacher.answer(folder, prompts, n=n, rewards=rewards)

        sampling = _sampling(self.settings, n, rewards)
        inputs = {"settings": sampling, "parent": self.parent}
        self.hashes[name] = run_stage(self.run.folder, name, inputs | {"data": examples}, make)
        return self.run.folder / name


def _prompts(settings: GenerateSettings, policy: Policy, examples: list):
    """The examples with their prompt_ids, without prompts above sampling.max_prompt_length."""
    with at("data"):
        prompts = policy.with_prompts(examples)
        # One prompt is enough: the template ends all of them alike
        check_opening(policy, prompts[0]["prompt_ids"])
    with at("sampling"):
        fits = fitting(prompts, settings.sampling.max_prompt_length, "generation")
        check_room(policy.config, fits, settings.sampling.max_completion_length)
    return fits


def _questions(settings: GenerateSettings):
    """(questions to ask, held-out questions of config.data.task)."""
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
            f"data.num_prompts={data.num_prompts} is above the {len(questions)} different questions; lower it"
        )
    return questions[: data.num_prompts], held_out


def _measured_on(settings: GenerateSettings, held_out: list):
    """(questions, solutions) of the evaluation sets that config.keep.decontaminate names."""
    questions, solutions = [], []
    for name in settings.keep.decontaminate:
        if name == "held_out":
            asked = [example["question"] for example in held_out]
            worked = [example.get("solution", example["answer"]) for example in held_out]
        else:
            with at("keep.decontaminate", "path"):
                asked, worked = evaluation_texts(name)
        questions, solutions = questions + asked, solutions + worked
    return questions, solutions


def _checkpoint(settings: GenerateSettings, run: Run, own: Mesh, questions: list):
    """(function that reads the teacher's Policy, its entry in the lineage).

    Pre-trains a base first, on the mesh of all processes. own: the mesh that the Policy is read on.
    """
    if settings.init_from is not None:
        with at("init_from"):
            check_checkpoint(settings.init_from)
        # Not the architecture, which the checkpoint has to have
        named = {"init_from": fingerprint(settings.init_from), "model": how_to_run(settings.model)}
        named["tokenizer"] = settings.tokenizer
        if settings.adapter is not None:
            named["adapter"] = fingerprint(settings.adapter)
        given = settings.init_from, settings.tokenizer, settings.model
        return _loader(settings, *given, own), named
    policy = starting_policy(settings, run.mesh, settings.data.template)
    policy = dataclasses.replace(policy, opening=settings.data.opening)
    # Raises for prompts that do not fit, before the base is trained
    _prompts(settings, policy, questions)
    base, seed, params = settings.base, settings.seed, run.folder / "base" / "params"

    def train(folder):
        # A run that was killed after this save calls train again
        if not is_orbax(params):
            base_run = run.of("pretrain", folder / "pretrain")
            trained = train_base(policy.config, base, policy.tokenizer, base_run, seed)
            save_orbax(params, policy.config, trained)
            run.writer.close()

    model = build_model(settings.model)
    numbers = {"base": base, "model": model, "seed": seed}
    made = run_stage(run.folder, "base", {"settings": numbers}, train)
    return _loader(settings, params, base.corpus, {}, own), made


def _loader(
    settings: GenerateSettings, path, tokenizer: str | None, model: dict, mesh: Mesh
) -> Callable[[], Policy]:
    """A function that reads a Policy. tokenizer: a name, for a checkpoint that has none."""

    def load():
        named = named_tokenizer(tokenizer) if is_orbax(path) and tokenizer else None
        options = dict(template=settings.data.template, tokenizer=named)
        policy = load_policy(path, model, mesh, **options)
        with at("config.adapter"):
            policy = policy.with_adapter_of(settings.adapter, mesh)
        return dataclasses.replace(policy, opening=settings.data.opening)

    return load


def _sampling(settings: GenerateSettings, n: int, rewards):
    """The settings of a stage's samples for the lineage, besides the teacher and the questions."""
    data = settings.data
    shown = {"template": data.template, "opening": data.opening, "seed": settings.seed, "n": n}
    if rewards is not None:
        shown |= {"rewards": settings.rewards, "models": settings.reward_models}
    return shown | {"sampling": settings.sampling, "chunk": settings.chunk_size}


def _log_kept(folder: Path, writer):
    """Log the share of completions that the filters kept: one line, for the table of a sweep."""
    if first_process():
        fates = read_json(folder / "fates.json").values()
        share = sum(of["kept"] for of in fates) / sum(sum(of.values()) for of in fates)
        writer.start("generate", 0)
        writer.write(0, {"kept_share": share}, phase="generate")


def _report(workdir: Path, fates: dict):
    """Print how many questions and completions each filter removed, and write workdir/report.json. Process 0
    alone.
    """
    if not first_process():
        return
    completions = read_json(workdir / "dataset" / "fates.json")
    report = {"questions": fates, "completions": completions}
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console = make_console()
    for what, counts in report.items():
        console.print(fates_table(f"what became of the {what}", counts))
    say(f"complete; set config.data.path of recipe 'sft' to {dataset_folder(workdir / 'dataset')}")
