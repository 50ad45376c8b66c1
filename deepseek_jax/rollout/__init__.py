"""Prompts in; completions, and the log-probabilities that they were sampled with, out."""

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
