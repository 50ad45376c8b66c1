"""The record of a conversation, and the ids that a model reads between its turns."""

from collections import Counter

import pytest

from deepseek_jax.data.tools import Call
from deepseek_jax.rollout import tool_use
from deepseek_jax.rollout.settings import ConversationLimits, Conversing
from deepseek_jax.rollout.tool_use import Conversation, EnvironmentReward, ToolUse, environments_of


class Form:
    """A form whose ids say what it was asked for."""

    def user(self, *texts):
        return ["user", *texts]

    def results(self, calls, texts):
        return ["results", *(call.name for call in calls), *texts]


def assistant(*names):
    calls = [{"function": {"name": name, "arguments": {}}} for name in names]
    return {"role": "assistant", "content": ""} | ({"tool_calls": calls} if calls else {})


def said(role, text):
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "messages, ids",
    [
        ([assistant()], []),
        # What follows the last turn was not read
        ([assistant("f"), said("tool", "1")], []),
        ([assistant("f"), said("tool", "1"), assistant()], ["results", "f", "1"]),
        ([assistant(), said("user", "a"), said("user", "b"), assistant()], ["user", "a", "b"]),
        (
            [assistant("f", "g"), said("tool", "1"), said("tool", "2"), assistant("h")]
            + [said("tool", "3"), assistant()],
            ["results", "f", "g", "1", "2", "results", "h", "3"],
        ),
    ],
)
def test_what_is_read_between_turns_is_what_tools_and_users_say_there(messages, ids):
    """Oracle: by hand, by a form that names what it writes."""
    use = ToolUse(None, Form(), ConversationLimits())
    assert use.read_ids(messages) == ids
    assert Call("f", {}).name == "f"


def test_what_was_said_is_counted_apart_for_each_use():
    """Oracle: by hand: two uses are equal, whatever they have said."""
    one, other = (ToolUse(None, None, ConversationLimits()) for _ in range(2))
    one.said["cut"] += 1
    assert other.said == Counter() and one == other


def test_a_conversation_begins_with_nothing_and_counts_what_is_logged():
    """Oracle: by hand."""
    fresh = Conversation()
    fresh.messages.append(1)
    assert Conversation().messages == [] and not Conversation().at_fault
    names = "turns tool_calls tool_errors tool_seconds truncated_turns rewritten_turns".split()
    assert Conversation().counts() == dict.fromkeys(names, 0)
    some = Conversation(
        turns=3, tool_calls=2, tool_errors=1, tool_seconds=0.5, cut="turns", rewritten=4
    )
    assert some.counts() == dict(zip(names, (3, 2, 1, 0.5, 1, 4), strict=True))
    one, other = Conversation(), Conversation()
    one.add_sampled([1, 2])
    one.add_sampled([3])
    other.add_sampled([1, 2, 3])
    assert one.sampled == other.sampled == 3 and one.digest == other.digest != 0
    assert Conversation().number == Conversation().sampled == Conversation().digest == 0


def test_an_environments_reward_is_its_number_or_why_there_is_none():
    """Oracle: by hand."""
    found = EnvironmentReward().score(
        [
            {"conversation": Conversation(reward=0.5)},
            {"conversation": Conversation(unscored="it broke")},
        ],
        ["", ""],
    )
    assert found[0] == 0.5 and isinstance(found[1], RuntimeError) and str(found[1]) == "it broke"


def test_environments_have_the_limits_of_their_settings(monkeypatch):
    """Oracle: by hand."""
    monkeypatch.setattr(tool_use, "Environments", lambda *given, **more: (given, more))
    limits = ConversationLimits(call_seconds=3.0, call_bytes=7, workers=5)
    settings = Conversing(tools=("a:b",), environment="c:d", conversation=limits)
    assert environments_of(settings) == (
        (("a:b",), "c:d"),
        dict(call_seconds=3.0, call_bytes=7, workers=5),
    )
