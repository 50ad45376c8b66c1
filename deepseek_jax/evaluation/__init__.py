"""What a run reached, and how sure that is: intervals, tables and curves."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Comparison": "compare",
        "ConversationLoss": "conversation_loss",
        "bootstrap_interval": "bootstrap",
        "evaluate": "held_out",
        "held_out_loss": "perplexity",
        "label_report": "preference",
        "mean_interval": "accuracy",
        "pair_report": "preference",
        "share_interval": "bootstrap",
        "wilson_interval": "accuracy",
    },
)
