"""Text in, float out: rules that score a completion. Plain Python, nothing here imports jax."""

from deepseek_jax.rewards.scoring import REWARDS, Rewards, Scores

__all__ = ["REWARDS", "Rewards", "Scores"]
