"""Losses: logits or log-probabilities in, (scalar, metrics) out."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "GrpoOptions": "settings",
        "NORMALIZES_STD": "settings",
        "completion_logprobs": "completions",
        "group_advantages": "advantages",
        "grpo_loss": "grpo",
        "k3_kl": "grpo",
        "make_grpo_loss": "grpo",
        "multi_token_losses": "multi_token",
        "next_token_loss": "next_token",
        "pairwise_loss": "preference",
        "pointwise_loss": "preference",
        "reward_loss": "preference",
    },
)
