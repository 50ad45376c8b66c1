"""Limits of answers and conversations, by hand."""

import dataclasses

import pytest

from deepseek_jax.rollout.settings import AnswerOptions, ConversationLimits, Conversing

TOOLS = dict(tools=("file.py:add",))
ENVIRONMENT = dict(environment="file.py:Game")


def test_what_settings_leave_out():
    """Oracle: by hand: every token may be drawn, at temperature 1."""
    answers = dataclasses.asdict(AnswerOptions(max_completion_length=5))
    filters = dict(temperature=1.0, top_p=1.0, top_k=0)
    assert answers == dict(max_completion_length=5, slots=32, speculative=False) | filters
    limits = dict(turns=8, turn_length=None, call_seconds=10.0, call_bytes=65_536)
    assert dataclasses.asdict(ConversationLimits()) == limits | dict(workers=2, call_steps=16)


@pytest.mark.parametrize(
    "fields, converses",
    [({}, False), (TOOLS, True), (ENVIRONMENT, True), (TOOLS | ENVIRONMENT, True)],
)
def test_answers_are_conversations_with_tools_or_an_environment(fields, converses):
    """Oracle: by hand: five turns, and none of single turns."""
    settings = Conversing(**fields, conversation=ConversationLimits(turns=5))
    assert settings.converses == converses and settings.most_turns() == 5 * converses


def test_limits_of_conversations_are_refused_without_any():
    """Oracle: by hand; limits that are the usual ones pass."""
    Conversing().check_conversation(10, "it")
    Conversing(**TOOLS, conversation=ConversationLimits(turns=5)).check_conversation(10, "it")
    with pytest.raises(ValueError, match="^conversation is given, but neither tools"):
        Conversing(conversation=ConversationLimits(turns=5)).check_conversation(10, "it")


def test_a_turn_that_is_longer_than_a_conversation_is_refused():
    """Oracle: by hand, at the length of a conversation and above it."""
    for length in (None, 10):
        limits = ConversationLimits(turn_length=length)
        Conversing(**TOOLS, conversation=limits).check_conversation(10, "it")
    limits = ConversationLimits(turn_length=11)
    with pytest.raises(ValueError, match="^conversation.turn_length=11 is above it=10"):
        Conversing(**TOOLS, conversation=limits).check_conversation(10, "it")
