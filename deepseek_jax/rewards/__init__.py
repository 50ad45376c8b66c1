"""Text in, float out: rules that score a completion. Plain Python; model.py alone imports jax."""

from deepseek_jax.rewards.scoring import RULES, Reading, Rewards, Rule, Scores

__all__ = ["RULES", "Reading", "Rewards", "Rule", "Scores"]
