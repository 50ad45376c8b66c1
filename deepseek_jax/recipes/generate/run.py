"""Data from a teacher (arXiv:2501.12948, section 2.4 and appendix B.3.3): what distillation learns from.

questions -> more of them, by rule and by the teacher -> n answers each, rewarded -> the good ones, as a
dataset for recipes.sft -> a report of what each filter removed.
"""

import json

import jax

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.data.questions import distinct, evaluation_texts, read_questions
from deepseek_jax.errors import at
from deepseek_jax.parallel.mesh import group_mesh
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.start import starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.settings import build
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import write_sifted
from deepseek_jax.synthesis.teacher import Teacher, with_prompts
from deepseek_jax.training.lineage import Formerly, run_stage
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.worlds.registry import find_questions, open_rewards

REDOES_WHAT_CHANGED = True  # other filters go on from the samples that are there


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of GenerateSettings' fields.

    Each of several processes, or groups of config.teacher_processes, answers its own share of the prompts, on
    a mesh of its own devices.
    """
    settings = build(GenerateSettings, config, "config")
    with at("config.teacher_processes"):
        own = group_mesh(mesh, settings.teacher_processes)
    with at("config.reward_models"):
        models = load_model_rewards(settings.reward_models, own)
    with at("config.rewards"):
        rewards = open_rewards(settings.rewards, models=models)
    with rewards:
        questions, held_out = _questions(settings)
        with at("config.rewards"):
            rewards.check(questions)
        measured_on = _measured_on(settings, held_out)
        evaluation = Evaluation(*measured_on, settings.keep.ngram) if any(measured_on) else None
        checkpoint, tokenizer, parent = _checkpoint(settings, mesh, workdir, should_stop, questions)
        with jax.set_mesh(own):
            teacher = Teacher(settings, checkpoint, tokenizer, own, should_stop)

            def ask(name, examples, n=1, rewards=None):
                sampling = _sampling(settings, n, rewards, config.get("reward_models", {}))
                inputs = {"settings": sampling, "parent": parent}

                def make(folder):
                    teacher.answer(folder, examples, n=n, rewards=rewards)

                asked[name] = run_stage(workdir, name, inputs | {"data": examples}, make)
                return workdir / name

            asked = {}
            with at("config"):
                examples, fates = augmented(settings, questions, evaluation, ask)
                samples = ask("samples", examples, settings.sampling.samples_per_prompt, rewards)
        inputs = {"settings": [settings.keep, settings.accuracy]}
        inputs |= {"parent": asked["samples"], "data": measured_on}

        def sift(folder):
            with at("config"):
                write_sifted(settings, samples, evaluation, folder)

        run_stage(workdir, "dataset", inputs, sift)
    _report(workdir, fates)


def _questions(settings):
    """(the questions to ask, the held-out ones of a task)."""
    data, held_out = settings.data, []
    with at("config.data"):
        if data.path is not None:
            questions = read_questions(data.path, data.split)
        else:
            _, asked = find_questions(data.task)
            task = asked.make(settings.seed, data.num_held_out)
            questions, held_out = distinct(task.train), task.held_out
    if data.num_prompts is not None and data.num_prompts > len(questions):
        raise ValueError(
            f"config.data.num_prompts={data.num_prompts} of {len(questions)} different questions; lower it"
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
            asked, worked = evaluation_texts(name)
        questions, solutions = questions + asked, solutions + worked
    return questions, solutions


def _checkpoint(settings, mesh, workdir, should_stop, questions):
    """(the teacher's checkpoint, the name of its tokenizer, what stands for it in the lineage).

    A base is pre-trained on the mesh of all processes. questions: looked at before that.
    """
    if settings.init_from is not None:
        named = {"init_from": fingerprint(settings.init_from), "model": settings.model}
        named["tokenizer"] = settings.tokenizer
        return settings.init_from, settings.tokenizer, named
    policy, _, tokenizer = starting_policy(settings, mesh)
    with at("config"):
        with_prompts(settings, policy, tokenizer, questions)  # for what it raises
    base, seed, params = settings.base, settings.seed, workdir / "base" / "params"

    def train(folder):
        if not is_orbax(params):
            writer = MetricsWriter(workdir)
            running = dict(seed=seed, writer=writer, should_stop=should_stop)
            save_orbax(params, policy, train_base(policy, base, tokenizer, mesh, folder, **running))
            writer.close()

    numbers = {"base": base, "model": policy, "seed": seed}
    return str(params), base.corpus, run_stage(workdir, "base", {"settings": numbers}, train)


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
