"""Accounts of a step: which questions are new, and that every sampled token is learned or left out."""

from collections import Counter, defaultdict

import numpy as np

from deepseek_jax.errors import BrokenTerm


class NewQuestions:
    """Counts the questions of each step that are new in their epoch.

    sizes: scenario -> the number of its questions, each of which is asked once an epoch.
    """

    def __init__(self, sizes: dict[str, int]):
        self.sizes, self.epochs, self.seen = sizes, Counter(), defaultdict(set)

    def add(self, scenario: str, number: int, example):
        """Whether the number-th question of a scenario is new; example: the object that the source gave."""
        epoch = number // self.sizes[scenario]
        if epoch != self.epochs[scenario]:
            self.epochs[scenario] = epoch
            self.seen[scenario].clear()
        # By identity: data may have one question several times
        is_new = id(example) not in self.seen[scenario]
        self.seen[scenario].add(id(example))
        return is_new


def check_questions(step: int, asked: int, new: int):
    """Raise BrokenTerm for a step that asks questions, none of which is new."""
    if asked and not new:
        raise BrokenTerm(
            f"step {step}: all {asked} questions were asked before in this epoch, which has others: the "
            "order of the questions does not go on"
        )


def left_out_tokens(groups: list, sampled: list):
    """The number of sampled tokens that no update learns: those of groups that are not trained on, and of
    completions without a reward. groups, sampled: of groups.make_groups, the first from the second.
    """
    trained = {id(group) for group in groups}
    return sum(
        group["mask"][np.isnan(group["rewards"]) | (id(group) not in trained)].sum()
        for group in sampled
    )


def check_tokens(step: int, answered: int, left_out: int, learned: int):
    """Raise BrokenTerm unless the updates learn the tokens of the answers, but for those left out."""
    if learned != answered - left_out:
        raise BrokenTerm(
            f"step {step}: {answered} tokens were sampled, {left_out} of them are left out with their "
            f"completions, and the updates learn {learned} in place of {answered - left_out}: a mask is wrong"
        )
