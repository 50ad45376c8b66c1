"""How answers are sampled, and how long a question and its answer may be."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.settings import (
    Count,
    GreedyOrTemperature,
    Named,
    Natural,
    Positive,
    PositiveShare,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are sampled: at most max_completion_length tokens each, `slots` answers at once.

    temperature 0 is greedy; top_p 1 and top_k 0 filter no token. speculative: the model's multi-token
    prediction module drafts a token at each step, which changes the draws and not their distribution.
    """

    max_completion_length: Count
    temperature: GreedyOrTemperature = 1.0
    top_p: PositiveShare = 1.0
    top_k: Natural = 0
    slots: Count = 32
    speculative: bool = False


# What a rollout cannot do at once
NOT_TOGETHER = {
    (
        "drafts",
        "turns",
    ): "speculative=True drafts in single turns, and completions with tools or an "
    "environment are conversations; set it to False, or leave these out",
    (
        "drafts",
        "routing",
    ): "keep_routing keeps the experts of tokens that are sampled one at a time, and "
    "speculative=True samples two; set one of them to False",
    (
        "drafts",
        "candidates",
    ): "top_k keeps what each token was drawn from, and speculative=True draws tokens in "
    "another way; set speculative to False, or top_k to 0",
    ("drafts", "int8"): "speculative=True does not take weights in int8; set speculative to False",
}


def check_together(**done: bool):
    """Raise ValueError for a pair of NOT_TOGETHER of which both are done."""
    for pair, message in NOT_TOGETHER.items():
        if all(done.get(name) for name in pair):
            raise ValueError(message)


class Limit(NamedTuple):
    """The longest completion, and the longest prompt or None for any that leaves room for it, in tokens."""

    completion: int
    prompt: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationLimits:
    """Limits of conversations with tools or an environment, see rollout.conversations.

    turns: the model's turns of one conversation. turn_length: tokens of a turn; None: as many as
    rollout.max_completion_length leaves. call_seconds: of one call of a tool, a step, a reset or a reward.
    call_bytes: of the text of one call, in UTF-8. workers: processes; each holds the environments of its
    share of conversations. call_steps: token steps of decoding after which a call's text enters.
    """

    turns: Count = 8
    turn_length: Count | None = None
    call_seconds: Positive = 10.0
    call_bytes: Count = 2**16
    workers: Count = 2
    call_steps: Natural = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversing:
    """A run whose answers are conversations, where it is given tools or an environment.

    tools: functions that the model may call, FILE.py:NAME or package.module:NAME. environment: a class, named
    alike, one of whose objects each conversation has. conversation: their limits. See environments.
    """

    tools: tuple[Named, ...] = ()
    environment: Named | None = None
    conversation: ConversationLimits = ConversationLimits()

    @property
    def converses(self):
        """Whether answers are conversations."""
        return bool(self.tools) or self.environment is not None

    def most_turns(self):
        """The model's turns of a conversation; 0 where answers are single turns."""
        return self.conversation.turns if self.converses else 0

    def check_conversation(self, longest: int, field: str):
        """Raise ValueError, naming the field, for limits without conversations, and for a turn that may be
        longer than a whole conversation: `longest` tokens, of this field.
        """
        if not self.converses and self.conversation != ConversationLimits():
            raise ValueError(
                "conversation is given, but neither tools nor environment, so that each answer is one turn; "
                "give one of these, or leave conversation out"
            )
        length = self.conversation.turn_length
        if self.converses and length is not None and length > longest:
            raise ValueError(
                f"conversation.turn_length={length} is above {field}={longest}, the tokens of a whole "
                f"conversation; lower it, or raise {field}"
            )
