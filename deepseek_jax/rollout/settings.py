"""How answers are sampled, and how long a question and its answer may be."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.settings import Count, GreedyOrTemperature, Natural, Positive, PositiveShare


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are sampled: at most max_completion_length tokens each, `slots` answers at once.

    temperature 0 is greedy; top_p 1 and top_k 0 filter no token.
    """

    max_completion_length: Count
    temperature: GreedyOrTemperature = 1.0
    top_p: PositiveShare = 1.0
    top_k: Natural = 0
    slots: Count = 32


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
