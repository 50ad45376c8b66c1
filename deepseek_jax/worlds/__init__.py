"""The toy worlds, each whole: words, corpus, tokenizer, tasks and its own rewards."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Questions": "world",
        "Score": "world",
        "World": "world",
        "find_corpus": "registry",
        "find_questions": "registry",
        "find_world": "registry",
        "open_rewards": "registry",
        "own_world": "own",
    },
)
