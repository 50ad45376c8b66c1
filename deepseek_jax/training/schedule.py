"""Numbers that change as training goes on, by update: the learning rate, and scalars that step."""

import dataclasses
import itertools
import math
from typing import Literal

import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine")
PHASES = ("linear", "constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a schedule: `steps` updates, from where the phase before ended to the rate `to`.

    "linear" and "cosine" (half a cosine, arXiv:1608.03983) would reach `to` at the update after
    their last, which the next phase begins with. "constant" is at `to` throughout, and without one
    stays where the phase before ended.
    """

    kind: Literal["linear", "constant", "cosine"]
    steps: int
    to: float | None = None


def make_schedule(
    learning_rate,
    *,
    schedule="constant",
    warmup_steps=0,
    num_steps,
    final_fraction=0.1,
    path="config.optimizer",
):
    """The learning rate of update i, counted from 0: a function int32[] -> float32[].

    Rises in a straight line from learning_rate / (warmup_steps + 1) at update 0, so that no update
    is wasted, to learning_rate at update warmup_steps. Then "constant" stays, and "cosine" falls by
    half a cosine (arXiv:1608.03983) to final_fraction * learning_rate at update num_steps.
    path: the config block that these stand in, for messages. Raises ValueError for an unknown
    schedule, a rate below zero, or a warm-up that does not end.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"{path}.schedule={schedule!r} is unknown; set it to one of {SCHEDULES}")
    if learning_rate < 0:
        raise ValueError(f"{path}.learning_rate={learning_rate} must not be below 0")
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"{path}.warmup_steps={warmup_steps} must be at least 0 and below num_steps={num_steps}, "
            "all its updates"
        )
    start = learning_rate / (warmup_steps + 1)
    if schedule == "constant":
        return optax.warmup_constant_schedule(start, learning_rate, warmup_steps)
    end = final_fraction * learning_rate
    return optax.warmup_cosine_decay_schedule(start, learning_rate, warmup_steps, num_steps, end)


def join_phases(phases, *, num_steps, path="config.optimizer"):
    """The learning rate of update i, counted from 0, over Phases end to end: int32[] -> float32[].

    A first phase that is linear or a cosine starts from 0, as published (arXiv:2412.19437, section
    4.2): update 0 fills Adam's moments and moves nothing. path: the config block that `phases`
    stands in, for messages. Raises ValueError for a phase that makes no sense, and unless the
    phases take num_steps updates in all.
    """
    schedules, ends, rate = [], [], None
    for i, phase in enumerate(phases):
        _check_phase(phase, f"{path}.phases[{i}]", first=i == 0)
        to = rate if phase.to is None else phase.to
        schedules.append(_curve(phase.kind, 0.0 if rate is None else rate, to, phase.steps))
        ends.append(phase.steps + (ends[-1] if ends else 0))
        rate = to
    total = ends[-1] if ends else 0
    if total != num_steps:
        more_or_fewer = f"{abs(total - num_steps)} {'more' if total > num_steps else 'fewer'}"
        raise ValueError(
            f"{path}.phases take {total} updates in all, {more_or_fewer} than the {num_steps} of the "
            "run; change the steps of a phase, or the run's"
        )
    return optax.join_schedules(schedules, ends[:-1])


def stepwise(stages, path="stages"):
    """A number that jumps: ((0, 0.3), (166_000, 0.1)) is 0.3 before update 166 000 and 0.1 from it on.

    stages: pairs (first update, number). Returns a function of the update, int32[] -> float32[].
    path: where the stages stand in the config, for messages. Raises ValueError unless the first
    updates begin at 0 and rise.
    """
    starts, numbers = _checked_stages(stages, path)
    starts, numbers = jnp.array(starts, jnp.int32), jnp.array(numbers, jnp.float32)
    return lambda update: numbers[jnp.searchsorted(starts, update, side="right") - 1]


def stage_at(stages, update, path="stages"):
    """stepwise's number on the host, an int as an int: for what decides shapes, as batch sizes do."""
    starts, numbers = _checked_stages(stages, path)
    return numbers[sum(start <= update for start in starts) - 1]


def _curve(kind, start, to, steps):
    if kind == "constant":
        return optax.constant_schedule(to)
    linear = kind == "linear"
    left = optax.linear_schedule(1, 0, steps) if linear else optax.cosine_decay_schedule(1, steps)
    return lambda i: to + (start - to) * left(i)  # left: the fraction still to go, from 1 to 0


def _check_phase(phase, path, first):
    if phase.kind not in PHASES:
        raise ValueError(f"{path}.kind={phase.kind!r} is unknown; set it to one of {PHASES}")
    if phase.steps < 1:
        raise ValueError(f"{path}.steps={phase.steps} must be at least 1")
    if phase.to is None and (first or phase.kind != "constant"):
        raise ValueError(
            f"{path} lacks `to`, the rate it ends at; only a constant phase after another does "
            "without"
        )
    if phase.to is not None and not 0 <= phase.to < math.inf:
        raise ValueError(f"{path}.to={phase.to} must be at least 0, and finite")


def _checked_stages(stages, path):
    starts, numbers = zip(*stages, strict=True) if stages else ((), ())
    whole = all(isinstance(start, int) and start < 2**31 for start in starts)
    if starts[:1] != (0,) or not whole or any(a >= b for a, b in itertools.pairwise(starts)):
        raise ValueError(
            f"{path}={stages} must be pairs (first update, number), the first updates ints that "
            "begin at 0 and rise"
        )
    return starts, numbers
