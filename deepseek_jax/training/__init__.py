"""The update of the parameters, the loop around it, and the files that a run writes."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "MetricsWriter": "metrics",
        "Run": "run",
        "TrainState": "state",
        "fit": "loop",
        "make_optimizer": "optimizer",
        "make_schedule": "schedule",
        "make_train_step": "update",
        "read_metrics": "metrics",
    },
)
