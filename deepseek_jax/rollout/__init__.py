"""Rollouts: sample completions of prompts, with the log-probability of each sampled token."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AnswerOptions": "settings",
        "Answers": "answers",
        "Policy": "policy",
        "Rollout": "completions",
        "completion_texts": "answers",
        "generate": "generation",
        "load_policy": "policy",
    },
)
