"""Prompts in, completions and the log-probabilities they were sampled with out."""

from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.rollout.engine import generate

__all__ = ["Rollout", "generate"]
