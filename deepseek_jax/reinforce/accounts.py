"""Accounts of a step of GRPO, which show that questions, tokens and rewards are not mixed up.

They check that a step asks new questions, that every sampled token is learned or left out, and that
a conversation has its own tokens, messages and reward.
"""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.parallel.processes import results_of_each
from deepseek_jax.rollout.tool_use import ToolUse, digest_of


class NewQuestions:
    """A counter of the questions that are new in their epoch.

    Args:
        sizes: scenario -> the number of its questions. Each is asked once an epoch.
    """

    def __init__(self, question_counts: dict[str, int]):
        self.sizes = question_counts
        self.epochs: Counter[str] = Counter()
        self.seen: defaultdict[str, set[int]] = defaultdict(set)

    def add(self, scenario: str, number: int, example: object) -> bool:
        """Count a question, and return whether it is new in its epoch.

        Args:
            number: the question's number in its scenario, over all epochs.
            example: the object that the source gave.
        """
        epoch = number // self.sizes[scenario]
        if epoch != self.epochs[scenario]:
            self.epochs[scenario] = epoch
            self.seen[scenario].clear()
        # By identity: data may have one question several times
        is_new = id(example) not in self.seen[scenario]
        self.seen[scenario].add(id(example))
        return is_new


def check_questions(step: int, num_asked: int, new: int):
    """Raise BrokenTerm if a step asks questions and none of them is new."""
    if num_asked and not new:
        raise BrokenTerm(
            f"step {step}: all {num_asked} questions were asked before in this epoch, which has others: the "
            "order of the questions does not go on"
        )


def left_out_tokens(groups: list[dict], sampled: list[dict]) -> int:
    """Return the number of sampled tokens that no update learns.

    They belong to groups that are not trained on, or to completions without a reward.

    Args:
        groups: the groups to train on, from groups.make_groups.
        sampled: all groups of the step; `groups` are among them.
    """
    trained_ids = {id(group) for group in groups}
    return sum(
        group["rollout"].lengths[np.isnan(group["rewards"]) | (id(group) not in trained_ids)].sum()
        for group in sampled
    )


def check_tokens(step: int, answered: int, left_out: int, learned: int):
    """Raise BrokenTerm unless the updates learn all tokens of the answers except the ones left out.

    Args:
        answered: tokens of all answers.
        left_out: as left_out_tokens returns.
        learned: tokens that the updates learn in one epoch.
    """
    if learned != answered - left_out:
        raise BrokenTerm(
            f"step {step}: {answered} tokens were sampled, {left_out} of them are left out with their "
            f"completions, and the updates learn {learned} in place of {answered - left_out}: a mask is wrong"
        )


def check_sampled(groups: list[dict], batch: dict[str, np.ndarray]):
    """Raise BrokenTerm unless an update learns each conversation's tokens as they were sampled.

    The engine noted a digest of these tokens turn by turn.

    Groups of single turns are not checked.

    Args:
        batch: from batch.group_batch, for these groups.
    """
    if "conversations" not in groups[0]:
        return
    conversations = [c for group in groups for c in group["conversations"]]
    rewards = np.concatenate([group["rewards"] for group in groups])
    is_here = np.concatenate([group["rollout"].is_here for group in groups])

    def check():
        # A conversation without a reward is not learned
        for row in np.flatnonzero(is_here & ~np.isnan(rewards)):
            conversation = conversations[row]
            learned_ids = batch["completion_ids"][row][batch["completion_mask"][row]]
            if digest_of(learned_ids) != conversation.digest:
                raise BrokenTerm(
                    f"conversation {conversation.number}: {conversation.sampled} tokens were sampled in its "
                    f"{conversation.turns} turns, and its update learns {len(learned_ids)} that are not "
                    "these: a mask is wrong"
                )

    _on_each(check)


def _on_each(check: Callable[[], None]):
    """Check the conversations that each process has, and raise its BrokenTerm on all of them."""
    try:
        results_of_each(check)
    except BrokenTerm:
        raise
    except ValueError as error:
        raise BrokenTerm(str(error)) from error


def check_conversations(step: int, groups: list[dict], tools: ToolUse):
    """Check the turns, the rewards and the replies of a step's conversations.

    Raises:
        BrokenTerm: for a conversation with more turns than its limit, for one with another's
            reward, and for one with tokens that it read and its messages do not have. The last
            check looks at one conversation a step.
    """
    for group in groups:
        group_size = len(group["conversations"])
        for place, conversation in enumerate(group["conversations"]):
            number, turns = group["row"] * group_size + place, conversation.turns
            if turns > tools.limits.turns:
                raise BrokenTerm(
                    f"step {step}: conversation {number} has {turns} turns of the model, above "
                    f"conversation.turns={tools.limits.turns}: the limit was ignored"
                )
            _check_reward(step, number, conversation, group["parts"], place, tools)
    _check_read(step, groups, tools)


def _check_reward(step, number, conversation, rewards_by_name, place, tools):
    paid_by = conversation.rewarded
    if conversation.number != number or paid_by not in (None, number):
        raise BrokenTerm(
            f"step {step}: conversation {number} has the record of conversation {conversation.number}, and "
            f"the reward that the environment of conversation {paid_by} gave: rewards are mixed up"
        )
    group_rewards = rewards_by_name.get(tools.environments.reward_name)
    # NaN: there is no such reward, or it does not count in this scenario
    if group_rewards is None or np.isnan(group_rewards[place]):
        return
    if group_rewards[place] != np.float32(conversation.reward):
        raise BrokenTerm(
            f"step {step}: conversation {number} got {conversation.reward} of its environment and is paid "
            f"{group_rewards[place]}: rewards are mixed up"
        )


def _check_read(step, groups, tools):
    """Check that the tokens which a conversation has read are in its messages.

    One conversation is checked at each step, another one at the next.
    """
    reader_places = [
        (group, place)
        for group in groups
        for place in np.flatnonzero(group["rollout"].read_lengths)
    ]
    if not reader_places:
        return
    group, place = reader_places[step % len(reader_places)]

    def check():
        rollout, conversation = group["rollout"], group["conversations"][place]
        if not rollout.is_here[place]:
            return
        read_ids = rollout.completion_ids[place][rollout.observed_mask[place]].tolist()
        if read_ids != tools.read_ids(conversation.messages):
            raise BrokenTerm(
                f"step {step}: conversation {conversation.number} has read {len(read_ids)} tokens that its "
                "messages do not have: replies of another one, or a mask is wrong"
            )

    _on_each(check)
