"""The long tail of completions: more groups are sampled than a step takes, and stragglers are carried over.

A rollout waits for its longest completion while most slots are idle. With settings.extra_prompts more groups
are under way than a step takes, and the rollout ends as soon as prompts_per_step of them are complete. The
others continue in the next step's rollout, from the tokens that they have (partial rollouts:
arXiv:2501.12599, section 2.6.2; arXiv:2509.18521). No group is dropped.

Two biases remain, and both are logged.
1. Order: a step takes the groups that are complete first, which are the shorter ones; the longer ones follow
   steps later, or, at the end of a run, never. completion_length of the first steps is too small, and
   groups_carried are missing at the end. carried_steps_max says how late the latest group of a step is.
2. Age: a carried completion begins with tokens of earlier parameters, stale_share of a step's tokens. Their
   ratio is to the policy that sampled them, which the clip limits; as in PPO it is that of a token and not of
   all tokens before it. stale_gap_mean says how many nats the policy has moved away from them.
"""

import dataclasses
from collections import Counter

import numpy as np

from deepseek_jax.reinforce.batch import bucket
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.rollout.completions import Rollout, RolloutLog, line_of
from deepseek_jax.rollout.requests import PROMPT_BUCKET


@dataclasses.dataclass
class Open:
    """A group under way. index: of its question. asked: the step. completions: group_size dicts of
    rollout.completions.line_of, with `ended`.
    """

    index: int
    asked: int
    completions: list

    @property
    def is_complete(self):
        """Whether every completion has ended."""
        return all(completion["ended"] for completion in self.completions)

    def lengths(self):
        """The tokens of each completion so far: int[n]."""
        return np.array([len(completion["ids"]) for completion in self.completions])


class UnderWay(RolloutLog):
    """The log of a rollout that continues groups under way, and ends when `wanted` of them are complete."""

    def __init__(self, groups: list[Open], wanted: int):
        self.groups, self.wanted = groups, wanted
        rows = dict(enumerate(c for group in groups for c in group.completions))
        self.done = {row: c for row, c in rows.items() if c["ended"]}
        tokens = {row: (c["ids"], c["logprobs"]) for row, c in rows.items()}
        self.begun = {row: tokens[row] for row, c in rows.items() if c["ids"] and not c["ended"]}
        self.ended = np.array([c["ended"] for c in rows.values()])

    def add(self, rows, rollout: Rollout):
        """Note that these rows have ended."""
        self.ended[rows] = True

    def enough(self):
        """Whether `wanted` groups are complete."""
        return self.ended.reshape(len(self.groups), -1).all(1).sum() >= self.wanted

    def after(self, rollout: Rollout):
        """The groups as they are after the rollout: [Open]."""
        rows = [
            line_of(rollout, row) | {"ended": bool(ended)} for row, ended in enumerate(self.ended)
        ]
        n = len(rows) // len(self.groups)
        return [
            dataclasses.replace(group, completions=rows[i * n : (i + 1) * n])
            for i, group in enumerate(self.groups)
        ]


class StragglerSource(GroupSource):
    """A GroupSource whose steps leave settings.extra_prompts groups, at most, to the next step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.carried = []

    def get_state(self):
        """The questions asked so far, and the groups that are carried into the next step."""
        return super().get_state() | {"carried": [dataclasses.asdict(g) for g in self.carried]}

    def set_state(self, state):
        """Resume with the questions and the groups of get_state."""
        super().set_state(state)
        self.carried = [Open(**group) for group in state["carried"]]

    def _sample(self, params, step: int):
        """The groups that are complete first, prompts_per_step of them in the order in which they were asked,
        each with `stale`, int[n], how many tokens of its completions earlier parameters sampled:
        -> (groups, the same, metrics).
        """
        wanted, n = self.settings.prompts_per_step, self.settings.group_size
        new = wanted + self.settings.extra_prompts - len(self.carried)
        start, self.position = self.position, self.position + new
        nothing = dict(ids=[], logprobs=[], finished=False, ended=False)
        asked = [Open(index, step, [nothing] * n) for index in range(start, self.position)]
        before = [*self.carried, *asked]
        examples = [self.questions[group.index] for group in before]
        under_way = UnderWay(before, wanted)
        answers, counts = self._answer(self._at(params), examples, step, 0, under_way)
        after = under_way.after(answers.rollout)
        taken = [i for i, group in enumerate(after) if group.is_complete][:wanted]
        self.carried = [group for i, group in enumerate(after) if i not in taken]

        groups, scored = self._scored([examples[i] for i in taken], answers.of(taken), step)
        for group, i in zip(groups, taken, strict=True):
            group["stale"] = before[i].lengths()
        stale = sum(group["stale"].sum() for group in groups)
        counts = Counter(counts | scored)
        # Of this step alone
        counts["sampled_tokens"] -= sum(group.lengths().sum() for group in before)
        counts["prefilled_positions"] += sum(
            bucket(len(examples[row // n]["prompt_ids"]) + len(ids), PROMPT_BUCKET)
            for row, (ids, _) in under_way.begun.items()
        )
        metrics = self._of_rounds(groups, counts)
        metrics["groups_carried"] = float(len(self.carried))
        metrics["carried_steps_max"] = float(max(step - before[i].asked for i in taken))
        metrics["stale_share"] = stale / sum(group["mask"].sum() for group in groups)
        return groups, groups, metrics
