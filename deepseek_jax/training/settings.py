"""What a config may say of a training loop: the classes that the blocks of the recipes extend."""

import dataclasses

from deepseek_jax.errors import at
from deepseek_jax.settings import Count, Natural, Settings, Several
from deepseek_jax.training.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """What every training loop reads: see training.loop. Steps: passes of the loop."""

    num_steps: Count
    optimizer: OptimizerSettings
    save_every: Count = 50
    log_every: Count = 1

    def __post_init__(self):
        super().__post_init__()
        with at("optimizer"):
            self.optimizer.rate(self.num_updates())  # for what it raises

    def num_updates(self):
        """The updates of all steps together."""
        return self.num_steps

    def make_optimizer(self, **options):
        """The optax transformation of the whole training. options: of OptimizerSettings.make."""
        return self.optimizer.make(self.num_updates(), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings(LoopSettings):
    """What training.phase.fit reads. micro_batches: parts of a batch that follow one another in an update."""

    seed: Natural = 0
    micro_batches: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings(FitSettings):
    """A training on rows of text: a step is batch_size rows of sequence_length tokens."""

    batch_size: Count
    sequence_length: Several


def check_evaluations(settings):
    """Raise ValueError where an evaluation falls on a step that is not logged: nobody would see its result.

    settings: has eval_every and log_every.
    """
    if settings.eval_every % settings.log_every:
        raise ValueError(
            f"eval_every={settings.eval_every} falls on steps that are not logged; set it to a multiple of "
            f"log_every={settings.log_every}"
        )
