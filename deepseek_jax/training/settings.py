"""Settings of a training loop: the classes that the recipes' config blocks extend."""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from deepseek_jax.errors import at, suggest
from deepseek_jax.settings import Count, Positive, Seed, Settings, Several, unhashed
from deepseek_jax.training.optimizer import OptimizerSettings

# The metrics that say how good a state is, by which the best checkpoint is chosen
OF_LOSSES = (
    *("loss", "held_out_loss", "next_token_loss", "mtp_loss", "balance_loss", "indexer_loss"),
    *("soft", "hard", "hidden", "relations", "matched", "sorted", "on_policy", "entropy", "kl"),
)
OF_REWARDS = ("reward", "accuracy", "margin", "safe_probability", "completion_length")
# What follows is a name of the config: a task, a reward, an effort, a teacher
FAMILIES = ("held_out_loss/", "regressed/", "reward_", "accuracy_effort_", "loss_", "kl_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """Which checkpoints a training loop makes besides those of save_every, and which of all stay.

    minutes: also save at a logged step, if the last save is that old. keep: the number of the newest that
    stay. keep_every: those after multiples of this number of steps stay too, for ever. best: the name of a
    metric; the checkpoint at its best value stays, and its state is the result of the training in place of
    the last one. best_is: which of the metric's values is the best. A checkpoint has the value that was
    logged last.
    """

    minutes: Positive | None = unhashed(None)
    keep: Count = unhashed(2)
    keep_every: Count | None = unhashed(None)
    best: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self):
        super().__post_init__()
        known = (*OF_LOSSES, *OF_REWARDS)
        if self.best is not None and self.best not in known and not self.best.startswith(FAMILIES):
            raise ValueError(
                f"best={self.best!r} is not a metric that says how good a checkpoint is; "
                f"{suggest(self.best, (*known, *(f'{family}NAME' for family in FAMILIES)))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultSettings(Settings):
    """When a fault that a run survives at first ends it.

    nonfinite: updates in a row whose gradients are not finite; each is skipped. idle_lines: the number of
    lines of metrics.jsonl, from the start of a phase on, in which a term of the loss is exactly 0 or a
    parameter has no gradient; of updates after the warm-up that move no weight; of steps in a row with a loss
    mask of zeros.
    """

    nonfinite: Count = 3
    idle_lines: Count = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """The settings of every training loop, see training.loop. A step is one pass of the loop."""

    num_steps: Count = unhashed()
    optimizer: OptimizerSettings
    save_every: Count = unhashed(50)
    log_every: Count = unhashed(1)
    checkpoints: CheckpointSettings = CheckpointSettings()
    faults: FaultSettings = unhashed(FaultSettings())

    def __post_init__(self):
        super().__post_init__()
        with at("optimizer"):
            # A schedule that does not fit the number of updates raises here, before anything compiles
            self.optimizer.rate(self.num_updates())
            # Recipes that may train an adapter have this field
            if self.optimizer.kind == "muon" and getattr(self, "adapter", None) is not None:
                raise ValueError(
                    "kind='muon' trains whole matrices, and with an adapter none is trained; set it to "
                    "'adamw', or adapter to None"
                )

    def num_updates(self):
        """The number of updates of all steps together."""
        return self.num_steps

    def continues(self):
        """Whether more steps leave those so far as they are."""
        return not self.optimizer.phases and self.optimizer.schedule == "constant"

    def is_logged(self, step: int):
        """Whether a step has a line of metrics."""
        return step % self.log_every == 0 or step == self.num_steps - 1

    @functools.cached_property
    def _rate(self):
        # As one program: a schedule of a dozen operations would compile each
        return jax.jit(self.optimizer.rate(self.num_updates()))

    def learning_rate(self, state):
        """The learning rate of the latest update: float. state: the TrainState after it."""
        return float(self._rate(np.int32(state.step) - 1))

    def make_optimizer(self, parts: tuple[str, ...] = ()):
        """The optax transformation for the whole training. parts: as in OptimizerSettings.make."""
        return self.optimizer.make(self.num_updates(), parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings(LoopSettings):
    """The settings of training.loop.fit. micro_batches: parts of a batch that an update computes in turn."""

    seed: Seed = 0
    micro_batches: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings(FitSettings):
    """Training on rows of text: a step takes batch_size rows of sequence_length tokens."""

    batch_size: Count
    sequence_length: Several


def check_evaluations(settings):
    """Raise ValueError where an evaluation falls on a step that is not logged: its result would be lost.

    settings: has eval_every and log_every.
    """
    if settings.eval_every % settings.log_every:
        raise ValueError(
            f"eval_every={settings.eval_every} falls on steps that are not logged; set it to a multiple of "
            f"log_every={settings.log_every}"
        )


def check_readers(readers: int, rows: int, field: str = "batch_size"):
    """Raise ValueError where readers cannot pack equal shares of a batch's rows. field: the rows' name."""
    if rows % readers:
        raise ValueError(
            f"readers={readers} does not divide the rows of a batch, {field}={rows}; set readers to a "
            f"divisor of {rows}"
        )
