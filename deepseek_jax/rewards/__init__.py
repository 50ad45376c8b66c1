"""Text in, float out: rules that score a completion. Plain Python; only model.py imports jax."""

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
