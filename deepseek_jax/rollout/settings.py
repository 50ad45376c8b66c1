"""Settings of answers: how they are sampled, how long they may be, and what they may call."""

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
    """How answers are sampled.

    Attributes:
        max_completion_length: The most tokens of an answer.
        temperature: 0 is greedy.
        top_p: 1 filters no token.
        top_k: 0 filters no token.
        slots: The number of answers that are sampled at once.
        speculative: At each step the model's multi-token prediction module drafts a token. This
            changes the draws, but not their distribution.
    """

    max_completion_length: Count
    temperature: GreedyOrTemperature = 1.0
    top_p: PositiveShare = 1.0
    top_k: Natural = 0
    slots: Count = 32
    speculative: bool = False


# What a rollout cannot do if it drafts, each with the message for a user who sets both
NOT_WITH_DRAFTS = {
    "turns": "speculative=True drafts in single turns, and completions with tools or an environment "
    "are conversations; set it to False, or leave these out",
    "routing": "keep_routing keeps the experts of tokens that are sampled one at a time, and "
    "speculative=True samples two; set one of them to False",
    "candidates": "top_k keeps what each token was drawn from, and speculative=True draws tokens in "
    "another way; set speculative to False, or top_k to 0",
    "int8": "speculative=True does not take weights in int8; set speculative to False",
}


def check_together(*, drafts: bool, **others: bool):
    """Raise ValueError if a rollout drafts and does something that NOT_WITH_DRAFTS excludes.

    Args:
        drafts: Whether it drafts.
        others: True for each name in NOT_WITH_DRAFTS that it does.
    """
    for name, message in NOT_WITH_DRAFTS.items():
        if drafts and others.get(name):
            raise ValueError(message)


class Limit(NamedTuple):
    """The most tokens of a prompt and of its completion.

    Attributes:
        completion: Tokens of the longest completion.
        prompt: Tokens of the longest prompt; None for any prompt that leaves room for the
            completion.
    """

    completion: int
    prompt: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationLimits:
    """Limits of conversations with tools or an environment, see rollout.conversations.

    Attributes:
        turns: The model's turns of one conversation.
        turn_length: Tokens of a turn; None for as many as rollout.max_completion_length leaves.
        call_seconds: Time of one call of a tool, a step, a reset or a reward.
        call_bytes: Bytes of the text of one call, in UTF-8.
        workers: The number of processes. Each one has the environments of its share of
            conversations.
        call_steps: The token steps of decoding after which a call's text enters.
    """

    turns: Count = 8
    turn_length: Count | None = None
    call_seconds: Positive = 10.0
    call_bytes: Count = 2**16
    workers: Count = 2
    call_steps: Natural = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversing:
    """Settings of tools and of an environment. With either, a run's answers are conversations.

    Attributes:
        tools: Functions that the model may call, FILE.py:NAME or package.module:NAME.
        environment: A class, with a name of the same form; each conversation has an object of it.
            See environments.
        conversation: The limits of conversations.
    """

    tools: tuple[Named, ...] = ()
    environment: Named | None = None
    conversation: ConversationLimits = ConversationLimits()

    @property
    def converses(self) -> bool:
        """True if answers are conversations."""
        return bool(self.tools) or self.environment is not None

    def most_turns(self) -> int:
        """Return the most turns of the model in a conversation; 0 if answers are single turns."""
        return self.conversation.turns if self.converses else 0

    def check_conversation(self, longest: int, field: str):
        """Check the limits of conversations against the other settings.

        Args:
            longest: The most tokens of a whole conversation.
            field: The name of the field that sets `longest`, for messages.

        Raises:
            ValueError: There are limits but no conversations; or a turn may be longer than a whole
                conversation.
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
