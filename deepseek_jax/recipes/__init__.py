"""Whole runs, each written as a list of stages that driver.py checks, plans and runs.

A recipe is a module with SETTINGS, stages, page and report; driver.py describes them.
"""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Trained": "in_process",
        "config": "experiment_file",
        "train": "in_process",
    },
)
