"""Accounts of a step: which questions are new, that every sampled token is learned or left out, and that a
conversation's tokens, messages and reward are its own.
"""

from collections import Counter, defaultdict

import numpy as np

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.rollout.tool_use import ToolUse, digest_of


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


def check_sampled(groups: list, batch: dict):
    """Raise BrokenTerm unless an update learns of each conversation what the engine sampled, turn by turn.

    batch: of batch.group_batch, of these groups.
    """
    if "conversations" not in groups[0]:
        return
    conversations = [each for group in groups for each in group["conversations"]]
    rewards = np.concatenate([group["rewards"] for group in groups])
    rows = zip(
        conversations, rewards, batch["completion_ids"], batch["completion_mask"], strict=True
    )
    for conversation, reward, ids, mask in rows:
        learned = ids[mask]
        # One without a reward is left out
        if np.isnan(reward) or digest_of(learned) == conversation.digest:
            continue
        raise BrokenTerm(
            f"conversation {conversation.number}: {conversation.sampled} tokens were sampled in its "
            f"{conversation.turns} turns, and its update learns {len(learned)} that are not these: a mask is "
            "wrong"
        )


def check_conversations(step: int, groups: list, tools: ToolUse):
    """Raise BrokenTerm for a conversation of more turns than its limit, one with another's reward, and, of
    one a step, for tokens that it read and its messages do not have.
    """
    for group in groups:
        n = len(group["conversations"])
        for place, conversation in enumerate(group["conversations"]):
            number, turns = group["row"] * n + place, conversation.turns
            if turns > tools.limits.turns:
                raise BrokenTerm(
                    f"step {step}: conversation {number} has {turns} turns of the model, above "
                    f"conversation.turns={tools.limits.turns}: the limit was ignored"
                )
            _check_reward(step, number, conversation, group["parts"], place, tools)
    _check_read(step, groups, tools)


def _check_reward(step, number, conversation, parts, place, tools):
    paid_by = conversation.rewarded
    if conversation.number != number or paid_by not in (None, number):
        raise BrokenTerm(
            f"step {step}: conversation {number} has the record of conversation {conversation.number}, and "
            f"the reward that the environment of conversation {paid_by} gave: rewards are mixed up"
        )
    part = parts.get(tools.environments.reward_name)
    # NaN: none, or none that counts in this scenario
    if part is None or np.isnan(part[place]):
        return
    if part[place] != np.float32(conversation.reward):
        raise BrokenTerm(
            f"step {step}: conversation {number} got {conversation.reward} of its environment and is paid "
            f"{part[place]}: rewards are mixed up"
        )


def _check_read(step, groups, tools):
    """The tokens that one conversation has read, another at each step, against its messages."""
    have_read = [
        (group, place)
        for group in groups
        for place, observed in enumerate(group["observed"])
        if observed.any()
    ]
    if not have_read:
        return
    group, place = have_read[step % len(have_read)]
    conversation = group["conversations"][place]
    read = group["ids"][place][group["observed"][place]].tolist()
    if read != tools.read_ids(conversation.messages):
        raise BrokenTerm(
            f"step {step}: conversation {conversation.number} has read {len(read)} tokens that its "
            "messages do not have: replies of another one, or a mask is wrong"
        )
