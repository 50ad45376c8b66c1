"""What a student's block `loss` may say, checked when built."""

import dataclasses
from typing import Literal

import numpy as np

from deepseek_jax.distill.divergences import DIVERGENCES, check_divergence
from deepseek_jax.distill.terms import OF_DATA, OF_TEACHER, TERMS
from deepseek_jax.errors import at
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import added, check_counts, suggest

CROSS = ("matched", "sorted")  # terms that a teacher of another tokenizer has in place of soft


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicySettings(AnswerOptions):
    """What the student samples for the term on_policy: completions of `prompts` prompts a step, one each."""

    prompts: int
    divergence: Literal[tuple(DIVERGENCES)] = "reverse_kl"
    beta: float | None = None
    top_p: float = added(1.0)
    slots: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """weights: of the TERMS that count. divergence, beta: of soft and matched, see distill.divergences.

    temperature: of the teacher's and student's distributions, or pairs (update, temperature), joined by
    straight lines. top_k: soft is of so many of the teacher's likeliest tokens, from a cache on disk.
    vocab_size: the tokens that teacher and student share, where their embeddings have rows beyond.
    same_tokens: of matched, (student's, teacher's) spellings of one thing, besides the end tokens.
    """

    weights: dict
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"
    beta: float | None = None
    temperature: float | tuple[tuple[int, float], ...] = 1.0
    top_k: int | None = None
    relation_heads: int = 1
    vocab_size: int | None = None
    same_tokens: tuple[tuple[str, str], ...] = ()
    on_policy: OnPolicySettings | None = None

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for what does not go together."""
        check_counts(self, path)
        for name, weight in self.weights.items():
            if name not in TERMS:
                raise ValueError(f"{path}.weights.{name} is no term; {suggest(name, TERMS)}")
            if not weight >= 0:
                raise ValueError(f"{path}.weights.{name}={weight} must be at least 0")
        if not any(self.weights.get(name) for name in (*OF_DATA, "on_policy")):
            raise ValueError(f"{path}.weights={self.weights} leaves nothing to learn")
        for _, temperature in self.temperatures():
            _check_divergence(path, self.divergence, self.beta, temperature)
        if self.on_policy is not None:
            on_policy = self.on_policy
            kind = on_policy.divergence, on_policy.beta, on_policy.temperature
            _check_divergence(f"{path}.on_policy", *kind)
            check_counts(on_policy, f"{path}.on_policy")
        if bool(self.weights.get("on_policy")) != (self.on_policy is not None):
            raise ValueError(
                f"{path}.weights.on_policy={self.weights.get('on_policy', 0)} and {path}.on_policy="
                f"{self.on_policy}: set both, or neither"
            )
        if self.top_k is not None:
            self._check_cache(path)
        if self.needs(*CROSS) and self.needs("soft", "hidden", "relations", "on_policy"):
            raise ValueError(
                f"{path}.weights compares teacher and student token by token, and as two tokenizers do; keep "
                f"either {', '.join(CROSS)} or the other terms of a teacher"
            )

    def _check_cache(self, path):
        if not self.needs("soft") or len(self.temperatures()) > 1:
            raise ValueError(
                f"{path}.top_k={self.top_k} keeps soft targets of one temperature: give {path}.weights.soft "
                f"a weight and {path}.temperature one number, or set top_k to None"
            )
        if self.divergence == "reverse_kl":
            raise ValueError(
                f"{path}.top_k={self.top_k} hides what the student may like and its teacher does not: of "
                f"{path}.divergence='reverse_kl' any amount; set it to forward_kl or jsd, or top_k to None"
            )

    def needs(self, *names):
        """Whether one of these terms counts."""
        return any(self.weights.get(name) for name in names)

    def learns_texts(self):
        """Whether a term needs the texts, and not only what the student samples."""
        return self.needs(*OF_DATA)

    def asks_teacher(self):
        """Whether a term needs a teacher at hand, for training or for a cache."""
        return self.needs(*OF_TEACHER)

    def temperatures(self):
        """((update, temperature), ...)."""
        given = self.temperature
        return given if isinstance(given, tuple) else ((0, given),)

    def temperature_at(self, update):
        """The temperature of an update."""
        return float(np.interp(update, *zip(*self.temperatures(), strict=True)))


def _check_divergence(path, divergence, beta, temperature):
    """As distill.divergences.check_divergence, of the block `path`."""
    with at(path):
        check_divergence(divergence, beta=beta, temperature=temperature)
