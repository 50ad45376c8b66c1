"""R1-Zero, and R1 in its four stages (arXiv:2501.12948), from one base model, on the bilingual small world.

base -> R1-Zero: reinforcement alone, for right answers and their layout
base -> 1 cold-start fine-tuning, on R1-Zero's readable traces -> Dev1
     -> 2 reasoning reinforcement, for one language too -> Dev2
        -> rejection sampling: by rules on puzzles, by a judge, the base taught to judge, on requests
base -> 3 fine-tuning on that, and on good answers to requests -> Dev3
        Dev3 -> two reward models, of helpfulness and of safety
     -> 4 reinforcement for all scenarios, by rules and by the reward models -> R1
Every policy is measured on held-out puzzles and requests.
"""

import json

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.blocks import build_model
from deepseek_jax.recipes.r1.findings import TABLE_WIDTH, report_sweep
from deepseek_jax.recipes.r1.scores import FORMS, measure
from deepseek_jax.recipes.r1.settings import (
    PREFERENCE_STAGES,
    REWARD_MODELS,
    TEMPLATE,
    R1Settings,
)
from deepseek_jax.recipes.r1.stages import Stages
from deepseek_jax.recipes.reward_model.run import reward_model_table
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.reinforce.update import check_length, check_rows, fitting
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.run_page import write_report
from deepseek_jax.reports.tables import stages_table
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.remembered import remembered
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task, bilingual_request_task
from deepseek_jax.worlds.registry import named_tokenizer

REDOES_WHAT_CHANGED = True  # and what follows from it: another config may go on in the same workdir
REINFORCED = ("zero", "reasoning", "scenarios")
TITLES = {
    "base": "base",
    "zero": "R1-Zero",
    "traces": "traces",
    "cold_start": "Dev1",
    "reasoning": "Dev2",
    "judge": "judge",
    "rejection": "accepted",
    "judged": "judged",
    "sft": "Dev3",
    "helpfulness_model": "helpfulness",
    "safety_model": "safety",
    "scenarios": "R1",
}
SHOWN = 2  # samples of each kind that are printed


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of R1Settings' fields.

    Each stage has a folder with stage.json, what it was made from (see lineage), and params, which
    launch/convert.py reads.
    """
    settings = build(R1Settings, config, "config")
    tokenizer, policy = named_tokenizer(settings.base.corpus), build_model(settings.model)
    _check(settings, policy, tokenizer, mesh)
    puzzles, requests = _tasks(settings, policy, tokenizer)
    writer = MetricsWriter(workdir)
    stages = Stages(settings, policy, tokenizer, mesh, workdir, writer, should_stop)
    pairs = stages.judged_pairs()  # before anything is trained, for what it raises
    names = {name: name.replace("@k", f"@{settings.evaluation.samples}") for name in FORMS}
    scores = {}

    def report():
        write_report(workdir, f"R1 in {workdir.name}", TITLES, FORMS, names)

    def measured(stage):
        scores[TITLES[stage.name]] = _measured(stages, stage, puzzles.held_out, requests.held_out)
        report()
        return stage

    base = measured(stages.base())
    zero = measured(stages.zero(base, puzzles.train))
    traces = stages.traces(zero, puzzles.train)
    dev1 = measured(stages.cold_start(base, traces, puzzles, requests))
    dev2 = measured(stages.reasoning(dev1, puzzles.train))
    judge = stages.judge(base, pairs)
    accepted = stages.rejection(dev2, puzzles.train)
    judged = stages.judged(dev2, judge, requests.train)
    dev3 = measured(stages.sft(base, accepted, judged, puzzles, requests))
    models = [stages.reward_model(name, dev3) for name in REWARD_MODELS]
    for model in (judge, *models):
        make_console().print(reward_model_table(f"{model.name}, held out", model.folder))
    measured(stages.scenarios(dev3, models, puzzles.train, requests.train))
    writer.close()
    make_console(width=TABLE_WIDTH).print(stages_table(scores, FORMS, names))
    report_sweep(workdir, [workdir])  # of one run: how far its findings hold, several tell
    report()
    say(f"complete; report.html, and a folder of each stage's lineage and params, are in {workdir}")


def _check(settings, policy, tokenizer, mesh):
    """Raise ValueError for what cannot be run, before anything is."""
    if tokenizer.vocab_size > policy.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
    with at("config.base"):
        settings.base.check(policy, mesh)
    for name in REINFORCED:
        stage = getattr(settings, name)
        models = dict.fromkeys(REWARD_MODELS if stage.general else ())  # to be trained
        with at(f"config.{name}"), scenario_rewards(stage, models):
            check_rows(stage, mesh)
    for name in ("cold_start", "sft", *PREFERENCE_STAGES):
        _check_fitted_rows(getattr(settings, name), policy, mesh, f"config.{name}")


def _check_fitted_rows(stage, policy, mesh, path):
    if stage.sequence_length > policy.max_position_embeddings:
        raise ValueError(
            f"{path}.sequence_length={stage.sequence_length} is beyond "
            f"config.model.max_position_embeddings={policy.max_position_embeddings}; lower it"
        )
    cuts = dict(micro_batches=stage.micro_batches)
    cuts["pipeline_micro_batches"] = policy.pipeline_micro_batches
    try:
        check_batch(mesh, stage.batch_size, stage.sequence_length, **cuts)
    except ValueError as error:
        sizes = f"{path}.batch_size={stage.batch_size}, sequence_length={stage.sequence_length}"
        raise ValueError(f"{sizes}: {error}") from error


def _tasks(settings, policy, tokenizer):
    """(puzzles, requests): Tasks whose examples carry their prompt_ids.

    Raises ValueError where a stage has no room for them, or asks for more than there are.
    """
    evaluation, seed = settings.evaluation, settings.seed
    puzzles = bilingual_puzzle_task(seed, evaluation.num_puzzles)
    requests = bilingual_request_task(seed, evaluation.num_requests)
    for examples in (puzzles.train, puzzles.held_out, requests.train, requests.held_out):
        for example in examples:
            prompt_ids = render_prompt(tokenizer, example["question"], template=TEMPLATE)
            example["prompt_ids"] = prompt_ids
    for name in REINFORCED:
        rollout = getattr(settings, name).rollout
        for task in (puzzles, requests):
            with at(f"config.{name}.rollout"):
                asked = fitting(task.train, rollout, "training")
                check_length(rollout.longest(), policy, asked)
    shown = {"cold_start": settings.cold_start.data, "sft": settings.sft.data}
    wanted = {f"{name}.data.num_puzzles": data.num_puzzles for name, data in shown.items()}
    for name in ("traces", "rejection"):
        wanted |= {f"{name}.num_prompts": getattr(settings, name).num_prompts}
    _check_numbers(wanted, len(puzzles.train), "puzzles")
    wanted = {f"{name}.data.num_requests": data.num_requests for name, data in shown.items()}
    _check_numbers(wanted, len(requests.train), "requests")
    unanswered = len(requests.train) - max(wanted.values())
    wanted = {"judged.num_prompts": settings.judged.num_prompts}
    _check_numbers(wanted, unanswered, "requests whose answers are not shown")
    return puzzles, requests


def _check_numbers(wanted, available, what):
    for field, number in wanted.items():
        if not 0 <= number <= available:
            raise ValueError(
                f"config.{field}={number} must be within 0..{available}, the {what} to train on"
            )


def _measured(stages, stage, puzzles, requests):
    """The scores of a stage's policy, measured once for its hash and the evaluation's settings."""
    settings, seed = stages.settings.evaluation, stages.settings.seed

    def answer():
        params = stages.params(stage)
        questions = puzzles, requests
        return measure(stages.policy, params, stages.tokenizer, *questions, settings, seed=seed)

    def make(folder):
        found = remembered(folder / "scores.json", answer)
        for name, interval in found["scores"].items():
            mean, low, high = (format(value, FORMS[name]) for value in interval)
            say(f"  {stage.name} {name}: {mean} ({low} to {high})")
        for groups in found["samples"].values():
            for group in groups[:SHOWN]:
                say(f"  {group['prompt']!r} -> {group['completions'][0]['text']!r}")

    inputs = {"settings": stages.settings_of(settings) | {"seed": seed}, "parent": stage.hash}
    inputs["data"] = [puzzles, requests]
    made = stages.make(f"measured/{stage.name}", inputs, make)
    return json.loads((made.folder / "scores.json").read_text())["scores"]
