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

import numpy as np

from deepseek_jax.reinforce.sampler import Sampler
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.completions import Rollout, RolloutLog, line_of
from deepseek_jax.rollout.requests import prompt_room


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


class LateAnswers:
    """The groups that a step leaves to the next, settings.extra_prompts at most.

    questions: number -> example with prompt_ids. carried: the groups for the next step, [Open]. taken: those
    of the latest step, as they were before it, [Open].
    """

    def __init__(self, sampler: Sampler, questions, settings: ReinforceSettings):
        self.sampler, self.questions, self.settings = sampler, questions, settings
        self.carried, self.taken = [], []

    def get_state(self):
        """What set_state resumes from, as JSON can hold it."""
        return {"carried": [dataclasses.asdict(group) for group in self.carried]}

    def set_state(self, state):
        """Resume with the groups of get_state."""
        self.carried = [Open(**group) for group in state["carried"]]

    def room(self):
        """How many questions join the carried ones in the next step."""
        settings = self.settings
        return settings.prompts_per_step + settings.extra_prompts - len(self.carried)

    def answer(self, params, numbers: range, step: int):
        """Continue the carried groups, and ask the questions of these numbers: -> (examples, their Answers,
        counts of the step), of the groups that are complete first, prompts_per_step of them in the order in
        which they were asked.
        """
        wanted, n = self.settings.prompts_per_step, self.settings.group_size
        nothing = dict(ids=[], logprobs=[], finished=False, ended=False)
        before = [*self.carried, *(Open(number, step, [nothing] * n) for number in numbers)]
        examples = [self.questions[group.index] for group in before]
        under_way = UnderWay(before, wanted)
        answers, counts = self.sampler.answer(params, examples, step, log=under_way)
        after = under_way.after(answers.rollout)
        taken = [i for i, group in enumerate(after) if group.is_complete][:wanted]
        self.carried = [group for i, group in enumerate(after) if i not in taken]
        self.taken = [before[i] for i in taken]
        # The tokens of this step alone
        counts["sampled_tokens"] -= sum(group.lengths().sum() for group in before)
        counts["prefilled_positions"] += sum(
            prompt_room(len(examples[row // n]["prompt_ids"]) + len(ids))
            for row, (ids, _) in under_way.begun.items()
        )
        answers, stale = answers.of(taken), sum(group.lengths().sum() for group in self.taken)
        counts["groups_carried"] = len(self.carried)
        counts["carried_steps_max"] = max(step - group.asked for group in self.taken)
        counts["stale_share"] = stale / answers.rollout.completion_mask.sum()
        return [examples[i] for i in taken], answers, counts

    def marked(self, groups: list):
        """The groups of the latest answers, each with `stale`, int[n]: how many tokens of its completions
        earlier parameters sampled.
        """
        pairs = zip(groups, self.taken, strict=True)
        return [group | {"stale": before.lengths()} for group, before in pairs]
