"""One update of the parameters, and the loop around it."""

from deepseek_jax.training.metrics import MetricsWriter, read_metrics
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.phase import fit
from deepseek_jax.training.schedule import make_schedule
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.step import make_train_step

__all__ = [
    "MetricsWriter",
    "TrainState",
    "fit",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "read_metrics",
]
