"""Rewards: rules and models that score a completion's text with a number.

All of it is plain Python, except model.py, which imports jax.
"""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Judge": "judge",
        "MathVerifier": "math_verify",
        "ProgramVerifier": "program",
        "RULES": "rules",
        "Reading": "rule",
        "RewardModel": "model",
        "Rewards": "scoring",
        "Rule": "rule",
        "Scores": "scoring",
    },
)
