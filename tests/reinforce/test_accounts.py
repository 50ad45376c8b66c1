"""Accounts of a step: each rule where it begins to fail."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.reinforce.accounts import (
    NewQuestions,
    check_conversations,
    check_questions,
    check_sampled,
    check_tokens,
    left_out_tokens,
)
from deepseek_jax.rollout.tool_use import digest_of
from tests.reinforce.rollouts import rollout_of

NAN = np.nan


def test_a_question_is_new_once_an_epoch_of_its_scenario():
    """Oracle: by hand: epochs of three and of two questions; two that are alike are two."""
    asked = NewQuestions({"reasoning": 3, "general": 2})
    questions = [{"q": 1}, {"q": 1}, {"q": 2}]

    def new(scenario, *numbers):
        return [asked.add(scenario, number, questions[number % 3]) for number in numbers]

    assert new("reasoning", 0, 1, 2, 1) == [True] * 3 + [False]
    assert new("general", 0, 1) == [True] * 2
    assert new("reasoning", 3, 4) == [True] * 2 and new("reasoning", 4) == [False]
    assert asked.add("general", 2, questions[0]) and not asked.add("general", 3, questions[0])


@pytest.mark.parametrize("asked, new, fine", [(2, 1, True), (0, 0, True), (2, 0, False)])
def test_a_step_asks_something_new(asked, new, fine):
    """Oracle: by hand."""
    if fine:
        check_questions(1, asked, new)
        return
    with pytest.raises(BrokenTerm, match="step 1: all 2 questions"):
        check_questions(1, asked, new)


def test_tokens_that_are_left_out_are_those_of_groups_and_of_completions_without_a_score():
    """Oracle: by hand: of completions of 1 and 2 tokens, those of a group that is not trained on, and one of
    the other; together with what is learned they are all.
    """
    rollout = rollout_of([[3, 0], [3, 4]])
    used = {"rollout": rollout, "rewards": np.array([0.0, NAN])}
    unused = {"rollout": rollout, "rewards": np.array([0.0, 1.0])}
    assert left_out_tokens([used], [used, unused]) == 2 + 3
    assert left_out_tokens([unused], [unused]) == 0
    check_tokens(5, answered=6, left_out=5, learned=1)
    with pytest.raises(BrokenTerm, match="step 5: 6 tokens .* learn 2 in place of 1"):
        check_tokens(5, answered=6, left_out=5, learned=2)


IDS = np.array([[3, 4, 5], [6, 7, 8], [1, 2, 3], [4, 5, 6]])
MASK = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 0], [0, 0, 1]], bool)
LIMITS = SimpleNamespace(turns=2)


def conversations(row=0):
    """Two groups of two conversations, with the numbers from `row` groups on."""
    groups = []
    for place in range(2):
        rows = slice(2 * place, 2 * place + 2)
        group = {"row": row + place}
        group["rollout"] = rollout_of(IDS[rows], MASK[rows], observed=~MASK[rows])
        group |= {"rewards": np.float32([0.1, 0.2]), "parts": {}}
        group["conversations"] = [
            SimpleNamespace(
                number=2 * (row + place) + each,
                digest=digest_of(IDS[2 * place + each][MASK[2 * place + each]]),
                sampled=int(MASK[2 * place + each].sum()),
                turns=2,
                rewarded=2 * (row + place) + each,
                reward=0.1 * (each + 1),
                messages=IDS[2 * place + each][~MASK[2 * place + each]].tolist(),
            )
            for each in range(2)
        ]
        group["parts"]["game"] = np.float32([0.1, 0.2])
        groups.append(group)
    return groups


TOOLS = SimpleNamespace(
    limits=LIMITS,
    environments=SimpleNamespace(reward_name="game"),
    read_ids=lambda messages: messages,
)


def test_an_update_learns_of_a_conversation_what_was_sampled():
    """Oracle: by hand: another mask is named with its conversation, unless that has no reward; single turns
    are not looked at.
    """
    groups, batch = conversations(), {"completion_ids": IDS, "completion_mask": MASK.copy()}
    check_sampled(groups, batch)
    batch["completion_mask"][2, 2] = True
    with pytest.raises(BrokenTerm, match="conversation 2: 2 tokens .* 2 turns, .* learns 3"):
        check_sampled(groups, batch)
    groups[1]["rewards"][0] = NAN
    check_sampled(groups, batch)
    check_sampled([{}], batch)


def changed(place, **fields):
    """conversations(1), of which one has other fields."""
    groups = conversations(1)
    vars(groups[place // 2]["conversations"][place % 2]).update(fields)
    return groups


def test_conversations_of_a_step_are_their_own():
    """Oracle: by hand, of groups from the second on: none raises, also without a reward of the environment,
    with one that does not count here, and with an environment that did not pay.
    """
    for step in range(5):
        check_conversations(step, conversations(1), TOOLS)
    check_conversations(0, changed(1, rewarded=None), TOOLS)
    for part in (None, np.float32([NAN, NAN])):
        groups = changed(2, reward=5.0)
        groups[1]["parts"] = {} if part is None else {"game": part}
        check_conversations(0, groups, TOOLS)


@pytest.mark.parametrize(
    "place, fields, words",
    [
        (1, dict(turns=3), "step 0: conversation 3 has 3 turns .* conversation.turns=2"),
        (2, dict(number=3), "conversation 4 has the record of conversation 3"),
        (2, dict(rewarded=3), "environment of conversation 3 gave"),
        (3, dict(reward=0.1), "conversation 5 got 0.1 of its environment and is paid 0.2"),
    ],
)
def test_a_conversation_with_something_of_another_is_named(place, fields, words):
    """Oracle: by hand."""
    with pytest.raises(BrokenTerm, match=words):
        check_conversations(0, changed(place, **fields), TOOLS)


def test_the_texts_that_one_conversation_read_are_looked_at_in_turn():
    """Oracle: by hand: the second of three that read anything is looked at in steps 1 and 4; conversations
    that read nothing are none.
    """
    groups = changed(2, messages=[99])
    for step in (0, 2, 3):
        check_conversations(step, groups, TOOLS)
    for step in (1, 4):
        with pytest.raises(BrokenTerm, match=f"step {step}: conversation 4 has read 1 tokens"):
            check_conversations(step, groups, TOOLS)
    for group in groups:
        group["rollout"].observed_mask[:] = False
    check_conversations(1, groups, TOOLS)
