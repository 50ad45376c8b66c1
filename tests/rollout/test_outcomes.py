"""What follows the turns of a conversation, by hand, with an environment that is made up."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from deepseek_jax.data.tools import Call
from deepseek_jax.rollout.conversations import Conversations, Turn
from deepseek_jax.rollout.settings import ConversationLimits
from deepseek_jax.rollout.tool_use import Conversation, ToolUse

WORDS = {1: "a", 2: "bad", 3: "call"}  # what ids say; the others nothing


class Form:
    name, rewritten = "made up", staticmethod(lambda messages, turns: 0)

    def parse(self, text, schemas):
        if text == "bad":
            raise ValueError("cannot")
        return text, [Call("f", {})] * (text == "call")

    def user(self, *texts):
        return [7] * len(texts[0])

    def results(self, calls, texts):
        return [8] * len(texts[0])


class Environments:
    """acts: what calls and steps give, in order. rewards: {key: (number, reward)}."""

    schemas = ()

    def __init__(self, *acts, takes_steps=False, rewards=None):
        self.acts, self.takes_steps, self.rewards = list(acts), takes_steps, rewards
        self.reward_name = rewards and "reward"
        self.begun, self.acted_on, self.ended, self.texts = {}, [], [], {}

    def begin(self, jobs):
        self.begun = jobs
        return {key: self.texts.get(key) for key in jobs}

    def act(self, key, given):
        self.acted_on.append((key, given))

    def acted(self, key):
        usual = dict(texts=["xx"], errors=0, seconds=0.25, failure=None, ended=False)
        return SimpleNamespace(**usual | self.acts.pop(0))

    def reward(self, key):
        return self.rewards[key]

    def end(self, key):
        self.ended.append(key)


def begun(*acts, longest=20, turns=8, turn_length=None, **options):
    """(Conversations of one example with two answers, Environments)."""
    own = Environments(*acts, **options)
    limits = ConversationLimits(turns=turns, turn_length=turn_length)
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(WORDS.get(id, "") for id in ids))
    found = Conversations(ToolUse(own, Form(), limits), tokenizer, [{"question": "q"}], 2, longest)
    assert found.begin(5) == [None]
    found.prompts = [[0, 0]]
    return found, own


def turn(row, *ids, stopped=True, length=3):
    return Turn(row, list(ids), stopped, length)


def test_calls_that_cannot_be_read_are_errors_and_those_that_fail_end_it(capsys):
    """Oracle: by hand: an unreadable turn, two calls, of which the second breaks a limit; the other answer
    has no calls.
    """
    found, own = begun(dict(errors=2), dict(failure="call_seconds=10"))
    assert [key for key in own.begun] == [0, 1] and own.begun[0] == own.begun[1]
    assert found.after([turn(0, 2), turn(1, 1)], ()) == {0: [7] * len("cannot"), 1: None}
    assert found.after([turn(0, 3, length=11)], ()) == {}
    assert own.acted_on == [(0, [Call("f", {})])]
    assert found.after((), [0]) == {0: [8, 8]}
    assert found.after([turn(0, 3, length=15)], ()) == {}
    assert found.after((), [0]) == {0: None}
    one, other = found.records()
    assert (one.turns, one.tool_calls, one.tool_errors, one.tool_seconds) == (3, 2, 1 + 2, 0.5)
    assert one.cut == "call_seconds=10" and one.at_fault and one.sampled == 3
    assert (other.turns, other.cut, other.at_fault, other.tool_calls) == (1, None, False, 0)
    assert [m["role"] for m in one.messages] == [
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert own.ended == [1, 0]
    assert "1 conversations were ended by their tools" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, cut, at_fault",
    [
        # A text of six tokens after three: the tenth token is the next turn's
        (dict(longest=10), None, False),
        (dict(longest=9), "after 3 tokens a text of 6 leaves no room", False),
        (dict(longest=6), "after 3 tokens a text of 6 leaves no room", True),
        (dict(turns=2), None, False),
        (dict(turns=1), "conversation.turns=1", False),
    ],
)
def test_a_text_is_read_where_another_turn_is_allowed_after_it(given, cut, at_fault):
    """Oracle: by hand; a text that no room could hold is the user's fault."""
    found, _ = begun(**given)
    wanted = [7] * 6 if cut is None else None
    assert found.after([turn(0, 2)], ()) == {0: wanted}
    assert (found.of[0].cut or "").startswith(cut or "") and (found.of[0].cut is None) == (
        cut is None
    )
    assert found.of[0].at_fault == at_fault


@pytest.mark.parametrize(
    "length, cut", [(2, "conversation.turn_length=2"), (3, "max_completion_length=20")]
)
def test_a_turn_without_an_end_names_the_limit_that_it_reached(length, cut):
    """Oracle: by hand: turns of two tokens."""
    found, _ = begun(turn_length=length)
    assert found.after([turn(0, 1, 1, stopped=False)], ()) == {0: None}
    assert found.of[0].cut == cut


def test_a_step_answers_until_the_environment_ends_and_then_gives_a_reward():
    """Oracle: by hand: two steps; rewards come when due, one of them a reason why there is none, each
    by the environment of the other.
    """
    rewards = {0: (1, "it broke"), 1: (0, 0.5)}
    found, own = begun({}, dict(ended=True), {"ended": True}, takes_steps=True, rewards=rewards)
    assert found.after([turn(0, 1), turn(1, 3)], ()) == {}
    assert own.acted_on == [(0, "a"), (1, "call")]
    assert found.after((), [0]) == {0: [7, 7]}
    assert found.after([turn(0, 1, length=6)], [1]) == {}
    assert found.after((), [0]) == {}
    assert found.after((), [0, 1]) == {0: None, 1: None}
    one, other = found.records()
    assert (one.reward, one.unscored, one.rewarded, one.tool_calls) == (None, "it broke", 1, 2)
    assert (other.reward, other.unscored, other.rewarded, other.tool_calls) == (0.5, None, 0, 1)


def test_each_process_has_the_conversations_of_its_examples(monkeypatch):
    """Oracle: by hand: of four examples with two answers each the second of two processes has the second and
    the fourth, numbered without gaps.
    """
    found = Conversations(None, None, [{}] * 4, 2, 9)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    own = [row for row in range(8) if found._is_own(row)]
    assert own == [2, 3, 6, 7] and [found._key(row) for row in own] == [0, 1, 2, 3]


def test_what_happens_to_many_is_said_at_doublings(capsys):
    """Oracle: by hand: the first, the second and the fourth of four at fault; of turns that are written
    otherwise the first.
    """
    found, _ = begun()
    shown = []
    for row in range(5):
        found._say(SimpleNamespace(at_fault=row > 0, rewritten=row % 2, turns=row, cut="x"))
        shown.append(capsys.readouterr().out)
    numbers = [text.partition(" ")[0] if "were ended" in text else "" for text in shown]
    assert numbers == ["", "1", "2", "", "4"]
    assert ["the chat template (made up)" in text for text in shown] == [0, 1, 0, 0, 0]
    assert found.use.said == {"at_fault": 4, "rewritten": 2}


def test_conversations_that_ended_before_are_not_begun_again():
    """Oracle: by hand: of two answers the first has its record; texts of reset differ, or do not."""
    own = Environments()
    found = Conversations(ToolUse(own, None, ConversationLimits()), None, [{"question": "q"}], 2, 9)
    record = dataclasses.asdict(Conversation(number=0, turns=3, reset_text="hello"))
    own.texts = {1: "hello"}
    assert found.begin(5, {0: {"conversation": record}}) == ["hello"]
    assert list(own.begun) == [1] and [c.turns for c in found.records()] == [3, 0]
    assert (found.of[1].number, found.of[1].reset_text) == (1, "hello")
    own.texts = {0: "hello", 1: "bye"}
    with pytest.raises(ValueError, match="^environment: reset returned .* for one question, 'q'"):
        found.begin(5)
