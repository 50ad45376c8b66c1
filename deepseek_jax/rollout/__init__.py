"""Prompts in; completions, and the log-probabilities that they were sampled with, out."""

from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.rollout.engine import generate
from deepseek_jax.rollout.policy import (
    AnswerOptions,
    Answers,
    Policy,
    completion_texts,
    load_policy,
)

__all__ = [
    "AnswerOptions",
    "Answers",
    "Policy",
    "Rollout",
    "completion_texts",
    "generate",
    "load_policy",
]
