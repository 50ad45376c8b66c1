"""Whole runs, as lists of stages. A recipe is a module with SETTINGS, stages, page and report: see driver."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Trained": "in_process",
        "config": "experiment_file",
        "train": "in_process",
    },
)
