"""Tables, curves and the HTML page of a run."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CURVES": "tables",
        "Page": "page",
        "before_after_table": "tables",
        "held_out_samples": "preferences",
        "loss_table": "tables",
        "make_console": "answers",
        "plot_curves": "tables",
        "print_samples": "answers",
        "print_table": "answers",
        "report_efforts": "efforts",
        "reward_model_table": "preferences",
        "stages_table": "tables",
        "with_answers": "answer_samples",
        "with_preferences": "preferences",
    },
)
