"""Logits or log-probabilities in, (scalar, metrics) out."""

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import NORMALIZES_STD, group_advantages, grpo_loss, k3_kl
from deepseek_jax.losses.multi_token import multi_token_losses
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.losses.preference import pairwise_loss, pointwise_loss, reward_loss

__all__ = [
    "NORMALIZES_STD",
    "completion_logprobs",
    "group_advantages",
    "grpo_loss",
    "k3_kl",
    "multi_token_losses",
    "next_token_loss",
    "pairwise_loss",
    "pointwise_loss",
    "reward_loss",
]
