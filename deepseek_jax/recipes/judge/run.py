"""A generative reward model (arXiv:2412.19437, section 5.2.1), fine-tuned to compare two answers, grade them
and say which one is better.

base -> verdicts on held-out pairs -> fine-tune on judgements -> verdicts again -> report.
"""

import functools
import json
from pathlib import Path

import numpy as np

from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.data.conversations import pack_conversations, render_numbered
from deepseek_jax.data.packing import Rows
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.reward_model.run import reward_model_table
from deepseek_jax.recipes.reward_model.settings import JudgeSettings, JudgeTrainingSettings
from deepseek_jax.recipes.sft.run import fine_tune
from deepseek_jax.recipes.start import (
    check_positions,
    check_rows,
    check_slots,
    pretrained,
    starting_policy,
)
from deepseek_jax.reinforce.model_rewards import JUDGE, judge_options, make_judge
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.rewards.judge import Judge
from deepseek_jax.rollout.policy import Policy, check_room
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.bilingual.world import BILINGUAL
from deepseek_jax.worlds.world import World

SETTINGS = JudgeSettings
PHASE = "judge"


def run(settings: JudgeSettings, run: Run):
    """Run the recipe, or resume it. Leaves the judge in run.folder/params, for
    config.reward_models.NAME.path of another run. A complete run is reported alone.
    """
    # What train_judge writes last
    if not (run.folder / "params" / JUDGE).exists():
        _train(settings, run)
    _report(run.folder)


def check_data(settings: JudgeSettings, mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        pairs = judged_pairs(settings, BILINGUAL, folder)
    return f"{len(pairs.train)} pairs, and {len(pairs.held_out)} held out, such as {pairs.train[0]}"


def _train(settings: JudgeSettings, run: Run):
    """Everything up to what the run leaves."""
    mesh, folder = run.mesh, run.folder
    with at("config"):
        # Before starting_policy, which may read gigabytes: rows that do not split raise at once
        cut = settings.model.get("pipeline_micro_batches")
        check_rows(settings, mesh, pipeline_micro_batches=cut)
        check_slots(settings, mesh)
        policy = starting_policy(settings, mesh, settings.data.template)
        check_positions(settings, policy.config)
        pairs = judged_pairs(settings, BILINGUAL, folder / "data")
        check_lengths(settings, policy, pairs, BILINGUAL)
    policy = pretrained(policy, settings, run)
    name = settings.init_from or settings.base.corpus
    train_judge(settings, policy, pairs, BILINGUAL, run.of(PHASE, folder), name)
    run.writer.close()


def judged_pairs(settings: JudgeTrainingSettings, world: World, folder: Path):
    """The world's training and held-out pairs: a Task. They are written below `folder` as a dataset."""
    sizes = dict(num_train=settings.data.num_train, num_held_out=settings.data.num_held_out)
    return world.judged_pairs(folder, seed=settings.seed, **sizes)


def check_lengths(settings: JudgeTrainingSettings, policy: Policy, pairs: Task, world: World):
    """Raise ValueError where a judgement does not fit a row, or a verdict the model's positions."""
    check_room(policy.config, (), settings.max_completion_length)
    conversations, limit = world.judgements(pairs.train, settings.seed), settings.sequence_length
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    longest = max(len(render(c, i)[0]) for i, c in enumerate(conversations))
    if longest > limit:
        raise ValueError(
            f"sequence_length={limit} is below the {longest} tokens of the longest judgement; raise it"
        )


def train_judge(
    settings: JudgeTrainingSettings,
    policy: Policy,
    pairs: Task,
    world: World,
    run: Run,
    tokenizer_name: str,
):
    """Train a judge from policy.params, which are donated, and save it in run.folder/params.

    Resumes from run.folder. before.json and after.json there have the scores on the held-out pairs. run: the
    Run of this phase. tokenizer_name: for worlds.registry.named_tokenizer.
    """
    folder, length = run.folder, settings.max_completion_length
    options = judge_options(length, settings.slots)

    def measure(params):
        return _measure(make_judge(policy.at(params), options), pairs.held_out)

    # Before fine_tune, which donates policy.params
    remembered(folder / "before.json", lambda: measure(policy.params))
    source = _packed(settings, policy, world.judgements(pairs.train, settings.seed), run.mesh)
    params = fine_tune(settings, policy, source, run.within(folder / PHASE))
    remembered(folder / "after.json", lambda: measure(params))
    if not is_whole(folder / "params"):
        save_orbax(folder / "params", policy.config, params)
    about = dict(template=policy.template, tokenizer=tokenizer_name, max_completion_length=length)
    # Written last: recipes.r1 takes this file as the sign that the judge is complete
    if first_process():
        (folder / "params" / JUDGE).write_text(json.dumps(about, indent=2) + "\n")


def _packed(settings: JudgeTrainingSettings, policy: Policy, conversations: list, mesh):
    fields = dict(sequence_length=settings.sequence_length, batch_size=settings.batch_size)
    how = dict(template=policy.template, seed=settings.seed)
    return PackedDocuments(
        lambda rows: pack_conversations(conversations, policy.tokenizer, rows, **how),
        Rows(**fields, readers=settings.data.readers),
        mesh,
        batch_sizes=((0, settings.batch_size),),
        scalars={},
        evaluate=None,
        eval_every=1,
    )


def _measure(judge: Judge, examples: list):
    """Ask the judge about held-out pairs, each in both orders: score -> [mean, low, high], 95%.

    Each score is a share of the pairs. accuracy: the chosen answer wins, where it stands first in every other
    pair and second in the rest. accuracy_of_both: it wins in both orders. same_verdict: both orders agree.
    no_verdict: at least one order has no verdict.
    """
    pairs = [(e["question"], e["chosen"], e["rejected"]) for e in examples]
    forth = judge.verdicts(pairs)
    back = judge.verdicts([(question, b, a) for question, a, b in pairs])
    first = np.array([verdict == 1 for verdict in forth])
    second = np.array([verdict == 2 for verdict in back])
    none = np.array([None in verdicts for verdicts in zip(forth, back, strict=True)])
    # A judge that always names the same position gets 1/2 by this
    alternating = np.where(np.arange(len(pairs)) % 2 == 0, first, second)
    scores = {
        "accuracy": alternating,
        "accuracy_of_both": first & second,
        "same_verdict": (first == second) & ~none,
        "no_verdict": none,
    }
    return {name: list(interval) for name, interval in summarise(scores).items()} | {
        "pairs": len(pairs)
    }


def _report(workdir: Path):
    """Draw the curves and print the scores. Process 0 alone."""
    if not first_process():
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=("loss",))
    console, folder = make_console(), workdir / "params"
    console.print(reward_model_table("verdicts on held-out pairs", workdir))
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
    console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")
