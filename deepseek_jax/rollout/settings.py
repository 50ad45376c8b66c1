"""How answers are sampled, and how long a question and its answer may be."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.settings import Count, GreedyOrTemperature, Natural, PositiveShare


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
