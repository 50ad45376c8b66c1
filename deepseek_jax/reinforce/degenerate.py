"""Steps in a row with groups that teach nothing: a message on the console, then the run's end."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from deepseek_jax.errors import UnusableRewards
from deepseek_jax.parallel.processes import is_due, say
from deepseek_jax.rewards.batch import LARGEST_REWARD
from deepseek_jax.rewards.scoring import Scores
from deepseek_jax.settings import Count, Settings

# The first message comes at this count: a few such steps are usual, above all at the start
FIRST_SAID = 8
# Limits that no config sets. Odd ends are the sampler's fault. A constant reward never ends a run:
# the policy may have learned to earn it
FIXED = {"odd_ends": FIRST_SAID, "constant_reward": None}
MEANINGS = {
    "equal_rewards": "all rewards of each group were equal, so that nothing was learned",
    "constant_reward": "a reward was the same for all completions",
    "truncated": "every completion was cut off at max_completion_length",
    "empty": "every completion was empty",
    "odd_ends": "completions ended at other tokens than those that end an answer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DegenerateSettings(Settings):
    """Limits on steps in a row with groups that teach nothing; None never ends a run.

    Attributes:
        equal_rewards: steps in which all rewards of each group are equal.
        truncated: steps in which every completion reaches the limit of its length.
        empty: steps in which every completion is empty.
    """

    equal_rewards: Count | None = 200
    truncated: Count | None = 200
    empty: Count | None = 50


class Degenerate:
    """A counter of steps in a row with groups that teach nothing.

    Attributes:
        limits: the DegenerateSettings.
        eos_ids: the tokens that end an answer.
        counts: {fault: steps in a row}.
    """

    def __init__(self, limits: DegenerateSettings, eos_ids: Iterable[int]):
        self.limits, self.eos_ids = limits, list(eos_ids)
        self.counts: Counter[str] = Counter()

    def look(self, step: int, groups: list[dict]):
        """Count the faults of a step's groups, and print a message when it is due.

        Args:
            groups: from groups.make_groups.

        Raises:
            UnusableRewards: at a limit.
        """
        sentence_ends, limits = (
            dict(faults(groups, self.eos_ids)),
            dataclasses.asdict(self.limits) | FIXED,
        )
        self.counts = Counter({fault: self.counts[fault] + 1 for fault in sentence_ends})
        for fault, count in self.counts.items():
            field = fault.partition(" ")[0]
            message = (
                f"step {step}: for {count} steps in a row {MEANINGS[field]}{sentence_ends[fault]}"
            )
            limit = limits[field]
            if limit is not None and count >= limit:
                limit_name = "the limit" if field in FIXED else f"degenerate.{field}"
                raise UnusableRewards(f"{message}; {limit_name}={limit} ends the run")
            if is_due(count, FIRST_SAID):
                say(message)


def faults(groups: list[dict], eos_ids: list[int]) -> Iterator[tuple[str, str]]:
    """Yield (fault, end of its sentence) for each fault of a step's groups.

    A fault is a key of MEANINGS, or such a key, a space and a reward's name.
    """
    rewards = np.stack([group["rewards"] for group in groups])
    if all(all_equal(row) for row in rewards):
        yield "equal_rewards", ""
    for name in groups[0]["parts"]:
        part_rewards = np.array([group["parts"][name] for group in groups])
        # A reward that no question of this step has is NaN for all
        if not np.isnan(part_rewards).all() and all_equal(part_rewards):
            yield f"constant_reward {name}", f": {name} was {np.nanmax(part_rewards):g}"
    rollouts = [group["rollout"] for group in groups]
    has_ended = ~np.concatenate([rollout.truncated for rollout in rollouts])
    if not has_ended.any():
        yield "truncated", ""
    lengths = np.concatenate([rollout.lengths for rollout in rollouts])
    if (lengths <= has_ended).all():
        yield "empty", ""
    last_ids = np.concatenate([rollout.last_ids for rollout in rollouts])
    odd_ids = np.unique(last_ids[has_ended & (lengths > 0) & ~np.isin(last_ids, eos_ids)])
    if len(odd_ids):
        yield "odd_ends", f": {', '.join(map(str, odd_ids[:5]))}"


def all_equal(rewards: np.ndarray) -> bool:
    """Return whether all rewards that are not NaN are equal."""
    scored_rewards = rewards[~np.isnan(rewards)]
    return len(scored_rewards) == 0 or scored_rewards.min() == scored_rewards.max()


def check_range(scores: Scores):
    """Raise UnusableRewards if a reward is beyond +-LARGEST_REWARD."""
    for name, values in {**scores.rewards_by_name, "the weighted sum": scores.total}.items():
        large_rewards = values[np.abs(values) > LARGEST_REWARD]
        if len(large_rewards):
            raise UnusableRewards(
                f"{name}: a reward is {abs(large_rewards[0]):.3g} in size, above {LARGEST_REWARD:g}: float32 "
                "would lose the differences that advantages are made of; scale that reward, or its weight "
                "in rewards"
            )
