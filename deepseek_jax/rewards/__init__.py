"""Text in, float out: rules that score a completion. Plain Python; model.py alone imports jax."""

from deepseek_jax.rewards.scoring import REWARDS, Rewards, Scores

__all__ = ["REWARDS", "Rewards", "Scores"]
