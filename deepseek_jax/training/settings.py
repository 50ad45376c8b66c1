"""Settings of a training loop: the classes that the recipes' config blocks extend.

Tests: tests/training/test_loop.py, tests/recipes/sft/test_run.py.
"""

import dataclasses
import functools
from typing import Any, Literal, Protocol

import jax
import numpy as np
import optax

from deepseek_jax.errors import at, suggest
from deepseek_jax.settings import Count, Positive, Seed, Settings, Several, unhashed
from deepseek_jax.training.optimizer import OptimizerSettings

# Metrics that say how good a state is: CheckpointSettings.best may name them
OF_LOSSES = (
    *("loss", "held_out_loss", "next_token_loss", "mtp_loss", "balance_loss", "indexer_loss"),
    *("soft", "hard", "hidden", "relations", "matched", "sorted", "on_policy", "entropy", "kl"),
)
OF_REWARDS = ("reward", "accuracy", "margin", "safe_probability", "completion_length")
# Beginnings of such metrics. A name from the config follows: a task, a reward, an effort, a teacher
FAMILIES = ("held_out_loss/", "regressed/", "reward_", "accuracy_effort_", "kl_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """The checkpoints that a loop saves in addition to every save_every steps, and which ones stay.

    A checkpoint has the value of the metric `best` that was logged last.

    Attributes:
        minutes: also save at a logged step if the last save is this old.
        keep: this many of the newest checkpoints stay.
        keep_every: checkpoints after multiples of this number of steps stay too, for ever.
        best: the name of a metric. The checkpoint with its best value stays too, and its state is
            the result of the training in place of the last one.
        best_is: which value of the metric is the best.
    """

    minutes: Positive | None = unhashed(None)
    keep: Count = unhashed(2)
    keep_every: Count | None = unhashed(None)
    best: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self):
        super().__post_init__()
        metric_names = (*OF_LOSSES, *OF_REWARDS)
        if (
            self.best is not None
            and self.best not in metric_names
            and not self.best.startswith(FAMILIES)
        ):
            raise ValueError(
                f"best={self.best!r} is not a metric that says how good a checkpoint is; "
                f"{suggest(self.best, (*metric_names, *(f'{family}NAME' for family in FAMILIES)))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultSettings(Settings):
    """Limits at which a fault that a run survives at first ends it.

    Attributes:
        nonfinite: updates in a row with gradients that are not finite. Each is skipped.
        idle_lines: lines of metrics.jsonl, from the start of a phase on, in which a term of the
            loss is exactly 0 or a parameter has no gradient. Also updates after the warm-up that
            move no weight, and steps in a row with a loss mask of zeros.
    """

    nonfinite: Count = 3
    idle_lines: Count = 3


class UpdatedState(Protocol):
    """The part of a TrainState that a learning rate depends on: settings import no model."""

    step: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """Settings that every training loop has, see training.loop.

    Attributes:
        num_steps: passes of the loop; a step may make several updates.
        optimizer: how gradients become updates.
        save_every: steps between two checkpoints.
        log_every: steps between two lines of metrics.
    """

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

    def num_updates(self) -> int:
        """Return the number of updates in all steps together."""
        return self.num_steps

    def continues(self) -> bool:
        """Return whether more steps leave the earlier steps unchanged.

        They do with a constant learning rate: any other schedule depends on num_steps.
        """
        return not self.optimizer.phases and self.optimizer.schedule == "constant"

    def is_logged(self, step: int) -> bool:
        """Return whether a step has a line of metrics."""
        return step % self.log_every == 0 or step == self.num_steps - 1

    @functools.cached_property
    def _rate(self):
        # Jitted as one program: otherwise each of a schedule's dozen operations would compile
        return jax.jit(self.optimizer.rate(self.num_updates()))

    def learning_rate(self, state: UpdatedState) -> float:
        """Return the learning rate of the latest update.

        Args:
            state: the TrainState after the update.
        """
        return float(self._rate(np.int32(state.step) - 1))

    def make_optimizer(self, trained_parts: tuple[str, ...] = ()) -> optax.GradientTransformation:
        """Build the optax transformation for the whole training.

        Args:
            trained_parts: as in OptimizerSettings.make.
        """
        return self.optimizer.make(self.num_updates(), trained_parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings(LoopSettings):
    """Settings of training.loop.fit.

    Attributes:
        seed: of the order of the data and of what is drawn.
        micro_batches: the parts of a batch that an update computes one after another.
    """

    seed: Seed = 0
    micro_batches: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings(FitSettings):
    """Settings of training on text: a step takes batch_size rows of sequence_length tokens.

    Attributes:
        batch_size: rows of an update.
        sequence_length: tokens of a row.
    """

    batch_size: Count
    sequence_length: Several


class Evaluations(Protocol):
    """Settings with evaluations on the way and with logged steps."""

    @property
    def eval_every(self) -> int:
        """Updates between two evaluations."""

    @property
    def log_every(self) -> int:
        """Updates between two logged steps."""


def check_evaluations(settings: Evaluations):
    """Raise ValueError if an evaluation falls on a step that is not logged.

    Its result would be lost.
    """
    if settings.eval_every % settings.log_every:
        raise ValueError(
            f"eval_every={settings.eval_every} falls on steps that are not logged; set it to a multiple of "
            f"log_every={settings.log_every}"
        )


def check_readers(readers: int, rows: int, field: str = "batch_size"):
    """Raise ValueError if the readers cannot pack equal shares of a batch's rows.

    Args:
        rows: the rows of a batch.
        field: the config's name for `rows`, for the message.
    """
    if rows % readers:
        raise ValueError(
            f"readers={readers} does not divide the rows of a batch, {field}={rows}; set readers to a "
            f"divisor of {rows}"
        )
