"""A stage that trains a judge: a generative reward model (arXiv:2412.19437, section 5.2.1).

A judge is a policy that is fine-tuned to compare two answers, grade them and say which one is
better.

Tests: tests/recipes/test_judge.py, tests/recipes/r1/test_list.py.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.checkpoint.orbax_params import save_orbax
from deepseek_jax.costs.program import Program
from deepseek_jax.data.conversations import render_numbered
from deepseek_jax.data.tasks import Task
from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.kinds.measure import answer_programs
from deepseek_jax.recipes.kinds.prefer import RewardTraining
from deepseek_jax.recipes.kinds.tune import fine_tune, fine_tuning_programs, packed_conversations
from deepseek_jax.recipes.reward_model.settings import JudgeTrainingSettings
from deepseek_jax.recipes.stage import AnswerPlan, Context, Source
from deepseek_jax.reinforce.model_rewards import JUDGE, judge_options, make_judge
from deepseek_jax.rewards.judge import Judge, judge_question, verdict
from deepseek_jax.rollout.policy import Policy, check_room
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.world import World

# The page has the judgements of this many held-out pairs
ON_PAGE = 16


def is_judge(folder: Path) -> bool:
    """Return True if train_judge has ended in a folder: the file that it writes last is there."""
    return (folder / "params" / JUDGE).exists()


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedPairs(Source):
    """A world's pairs of answers, with one of each pair chosen."""

    world: World

    @override
    def covers(self, context):
        pairs = self.read(context)
        return [pairs.train, pairs.held_out]

    @override
    def describe(self, context):
        pairs = self.read(context)
        counts = f"{len(pairs.train)} pairs, and {len(pairs.held_out)} held out"
        return f"{counts}, such as {pairs.train[0]}"

    def read(self, context: Context) -> Task:
        """Return the training pairs and the held-out pairs."""
        return context.once(self, lambda: self._read(context.settings))

    def _read(self, settings):
        if self.world.judged_pairs is None:
            raise ValueError(
                f"the world {self.world.name!r} has no pairs to train a judge on; leave the judge out"
            )
        return self.world.judged_pairs(
            seed=settings.seed,
            num_train=settings.data.num_train,
            num_held_out=settings.data.num_held_out,
        )


def _judgements(world: World, pairs: list, seed: int):
    """Return the conversations in which a judge compares pairs of the world."""
    # A world with judged_pairs has both
    assert world.judgements is not None
    return world.judgements(pairs, seed)


def check_lengths(settings: JudgeTrainingSettings, policy: Policy, pairs: Task, world: World):
    """Raise ValueError if a judgement is longer than a row."""
    conversations, limit = _judgements(world, pairs.train, settings.seed), settings.sequence_length
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    judgement_length = max(len(render(c, i)[0]) for i, c in enumerate(conversations))
    if judgement_length > limit:
        raise ValueError(
            f"sequence_length={limit} is below the {judgement_length} tokens of the longest judgement; "
            "raise it"
        )


def train_judge(
    settings: JudgeTrainingSettings,
    policy: Policy,
    pairs: Task,
    world: World,
    run: Run,
    folder: Path,
):
    """Train a judge from a policy and save it in folder/params.

    It resumes from run.folder. The scores on the held-out pairs are in before.json and after.json
    of `folder`.

    Args:
        settings: The settings of the training.
        policy: The policy to begin from; its params are donated.
        pairs: The training and held-out pairs.
        world: The world that the pairs come from.
        run: The Run of this phase.
        folder: The folder of the stage.
    """
    length = settings.max_completion_length
    options = judge_options(length, settings.slots)

    def measure(when, params):
        with waiting_for(f"measuring {when}: {len(pairs.held_out):,} held-out pairs"):
            return _measure(make_judge(policy.with_params(params), options), pairs.held_out)

    # Before fine_tune, because it donates policy.params
    remembered(folder / "before.json", lambda: measure("before", policy.params))
    judgements = _judgements(world, pairs.train, settings.seed)
    source = packed_conversations(settings, policy, judgements, None, run.mesh)
    params = fine_tune(settings, policy, source, run)
    remembered(folder / "after.json", lambda: measure("after", params))
    if not is_whole(folder / "params"):
        save_orbax(folder / "params", policy.config, params, policy.files())
    judge_fields = dict(max_completion_length=length)
    # Written last: is_judge takes this file as the sign that the judge is complete
    if first_process():
        (folder / "params" / JUDGE).write_text(json.dumps(judge_fields, indent=2) + "\n")


def _measure(judge: Judge, examples: list):
    """Measure a judge on held-out pairs, each in both orders: score -> [mean, low, high], 95%.

    Each score is a share of the pairs:

    - accuracy: the chosen answer wins; it stands first in every other pair, and second in the rest.
    - accuracy_of_both: the chosen answer wins in both orders.
    - same_verdict: both orders agree.
    - no_verdict: at least one order has no verdict.

    Two more entries are pairs, their number, and samples, the first judgements for the page.
    """
    pairs = [(e["question"], e["chosen"], e["rejected"]) for e in examples]
    replies = judge.replies(pairs)
    verdicts_forth = [verdict(reply) for reply in replies]
    verdicts_back = judge.verdicts(
        [(question, rejected, chosen) for question, chosen, rejected in pairs]
    )
    wins_first = np.array([winner == 1 for winner in verdicts_forth])
    wins_second = np.array([winner == 2 for winner in verdicts_back])
    lacks_verdict = np.array(
        [None in both_verdicts for both_verdicts in zip(verdicts_forth, verdicts_back, strict=True)]
    )
    # So a judge that always names the same position scores 1/2
    wins_alternating = np.where(np.arange(len(pairs)) % 2 == 0, wins_first, wins_second)
    scores = {
        "accuracy": wins_alternating,
        "accuracy_of_both": wins_first & wins_second,
        "same_verdict": (wins_first == wins_second) & ~lacks_verdict,
        "no_verdict": lacks_verdict,
    }
    intervals = {name: list(interval) for name, interval in summarise(scores).items()}
    judgements = zip(pairs, replies, wins_first.tolist(), strict=True)
    samples = [_sample(*judgement) for judgement in itertools.islice(judgements, ON_PAGE)]
    return intervals | {"pairs": len(pairs), "samples": {"held_out": samples}}


def _sample(pair, reply, is_right):
    """Return a judgement in the form that evaluation.held_out gives an answer.

    The chosen answer stands first.
    """
    text = "" if isinstance(reply, ValueError) else reply
    fields = {
        "prompt": judge_question(*pair),
        "completion": text,
        "reward": None,
        "right": is_right,
    }
    return fields | {"columns": {}}


def judge_programs(
    name: str, settings: JudgeTrainingSettings, config: ModelConfig, mesh: Mesh
) -> list[Program]:
    """Return the programs of a judge's training from a policy of `config`: update and verdicts."""
    update = fine_tuning_programs(name, settings, config, mesh)[:1]
    options = judge_options(settings.max_completion_length, settings.slots)
    # Both orders of each held-out pair are judged
    pairs = AnswerPlan(
        options, 2 * settings.data.num_held_out, prompt_length=settings.sequence_length
    )
    return update + answer_programs(f"{name}verdicts: ", config, mesh, pairs)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainJudge(RewardTraining):
    """Training of a judge from the policy that it begins from.

    Its folder gets the judge, and the judge's scores before and after.
    """

    settings: JudgeTrainingSettings
    _: dataclasses.KW_ONLY
    pairs: JudgedPairs

    @override
    def is_left(self, folder):
        return is_judge(folder)

    @override
    def check(self, config, mesh):
        super().check(config, mesh)
        check_room(config, (), self.settings.max_completion_length)

    @override
    def check_data(self, context):
        super().check_data(context)
        pairs, world = self.pairs.read(context), self.pairs.world
        check_lengths(self.settings, context.policy, pairs, world)

    @override
    def programs(self, config, mesh, others):
        return judge_programs(self.prefix, self.settings, config, mesh)

    @override
    def run(self, context):
        pairs, world = self.pairs.read(context), self.pairs.world
        train_judge(
            self.settings, context.load_start(), pairs, world, context.run, context.stage_folder
        )
