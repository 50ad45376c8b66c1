"""Scores of a run and how certain they are: intervals, comparisons and agreement."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Comparison": "compare",
        "ConversationLoss": "conversation_loss",
        "evaluate": "held_out",
        "held_out_loss": "perplexity",
        "label_report": "preference",
        "length_interval": "accuracy",
        "mean_interval": "accuracy",
        "pair_report": "preference",
        "share_interval": "accuracy",
        "wilson_interval": "accuracy",
    },
)
