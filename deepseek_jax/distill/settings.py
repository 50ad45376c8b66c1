"""Settings of a student's `loss` block, checked when they are built."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from deepseek_jax.distill.divergences import DivergenceName, check_beta
from deepseek_jax.distill.terms import OF_DATA, OF_TEACHER, TERMS
from deepseek_jax.errors import suggest
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import (
    Count,
    Natural,
    NonNegative,
    PositiveShare,
    Temperature,
)
from deepseek_jax.training.schedule import pairs_of

# These terms take the place of soft if the teacher has another tokenizer
CROSS = ("matched", "sorted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicySettings(AnswerOptions):
    """Sampling for the term on_policy.

    Attributes:
        prompts: Prompts of a step, which the student completes once each.
        divergence: From the student to the teacher, see distill.divergences.
        beta: The parameter of divergence.
    """

    prompts: Count
    divergence: DivergenceName = "reverse_kl"
    beta: float | None = None
    temperature: Temperature = 1.0
    top_p: PositiveShare = 1.0
    slots: Count = 64

    def __post_init__(self):
        check_beta(self.divergence, self.beta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The `loss` block of a student: which terms it has, and how each compares with the teacher.

    Attributes:
        weights: By name of terms.TERMS; 0 if not named.
        divergence: For soft and matched, see distill.divergences.
        beta: The parameter of divergence, see distill.divergences.
        temperature: Of the teacher's and the student's distributions: a number, or pairs (update,
            temperature) with linear interpolation between them.
        top_k: Number of the teacher's likeliest tokens that soft uses, from a cache on disk.
        relation_heads: For relations, see relation_loss.
        on_policy: Sampling for the term on_policy.
        vocab_size: Number of tokens that teacher and student share, if an embedding has more rows.

    Raises:
        ValueError: If the fields do not fit together.
    """

    weights: dict[str, Natural | NonNegative]
    divergence: DivergenceName = "forward_kl"
    beta: float | None = None
    temperature: Temperature | tuple[tuple[Natural, Temperature], ...] = 1.0
    top_k: Count | None = None
    relation_heads: Count = 1
    vocab_size: Count | None = None
    on_policy: OnPolicySettings | None = None

    def __post_init__(self):
        for name, weight in self.weights.items():
            if name not in TERMS:
                raise ValueError(f"weights.{name}={weight} names no term; {suggest(name, TERMS)}")
        if not any(self.weights.get(name) for name in (*OF_DATA, "on_policy")):
            raise ValueError(f"weights={self.weights} leaves nothing to learn")
        check_beta(self.divergence, self.beta)
        if bool(self.weights.get("on_policy")) != (self.on_policy is not None):
            raise ValueError(
                f"weights.on_policy={self.weights.get('on_policy', 0)} and on_policy={self.on_policy}: set "
                "both, or neither"
            )
        if self.top_k is not None:
            self._check_cache()
        if self.needs(*CROSS) and self.needs("soft", "hidden", "relations", "on_policy"):
            raise ValueError(
                f"weights={self.weights} mixes terms for one shared tokenizer with terms for two; keep "
                f"either {', '.join(CROSS)} or the other terms that need a teacher"
            )

    def _check_cache(self):
        if not self.needs("soft") or len(self.temperatures()) > 1:
            raise ValueError(
                f"top_k={self.top_k} caches soft targets at a single temperature: set weights.soft above 0 "
                "and temperature to one number, or top_k to None"
            )
        if self.divergence == "reverse_kl":
            raise ValueError(
                f"top_k={self.top_k} drops tokens that the teacher finds unlikely and the student may not: "
                "divergence='reverse_kl' has no bound then; set it to forward_kl or jsd, or top_k to None"
            )

    def needs(self, *names: str) -> bool:
        """Return whether one of these terms has a weight."""
        return any(self.weights.get(name) for name in names)

    def learns_texts(self) -> bool:
        """Return whether a term needs the training texts, not only the student's own samples."""
        return self.needs(*OF_DATA)

    def asks_teacher(self) -> bool:
        """Return whether a term needs a teacher, during training or to fill a cache."""
        return self.needs(*OF_TEACHER)

    def reads_teacher(self) -> bool:
        """Return whether an update reads the teacher's parameters: cached soft targets do not."""
        cached = ("soft",) if self.top_k is not None else ()
        return self.needs(*(name for name in OF_TEACHER if name not in cached))

    def temperatures(self) -> Sequence[tuple[int, float]]:
        """Return the temperature as pairs, ((update, temperature), ...)."""
        return pairs_of(self.temperature)

    def temperature_at(self, update: int) -> float:
        """Return the temperature at an update."""
        updates, temperatures = zip(*self.temperatures(), strict=True)
        return float(np.interp(update, updates, temperatures))
