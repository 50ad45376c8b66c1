"""Numbers that depend on the update count: the learning rate, and scalars that jump."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepseek_jax.settings import Count, NonNegative

Number = TypeVar("Number", bound=float)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a schedule: `steps` updates, from the rate of the phase before to the rate `to`.

    Attributes:
        kind: "linear" and "cosine" (half a cosine, arXiv:1608.03983) would reach `to` at the update
            after their last one, which is the first update of the next phase. "constant" is at `to`
            throughout.
        steps: the updates of the stretch.
        to: the rate at the end. None, for "constant" only, means the previous phase's final rate.
    """

    kind: Literal["linear", "constant", "cosine"]
    steps: Count
    to: NonNegative | None = None

    def __post_init__(self):
        if self.to is None and self.kind != "constant":
            raise ValueError(
                f"to=None: a phase of kind={self.kind!r} needs the rate that it ends at; set it"
            )


def make_schedule(
    learning_rate: float,
    *,
    schedule: str = "constant",
    warmup_steps: int = 0,
    num_steps: int,
    final_fraction: float = 0.1,
) -> optax.Schedule:
    """Build the learning rate of update i, counted from 0: a function int32[] -> float32[].

    It rises in a straight line from learning_rate / (warmup_steps + 1) at update 0, so that no
    update is wasted, to learning_rate at update warmup_steps.

    Args:
        schedule: after the warm-up "constant" stays there, and "cosine" falls by half a cosine
            (arXiv:1608.03983) to final_fraction * learning_rate at update num_steps.
        num_steps: the number of all updates.

    Raises:
        ValueError: for a warm-up that does not end before num_steps.
    """
    if warmup_steps >= num_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be below {num_steps}, the number of all updates"
        )
    start = learning_rate / (warmup_steps + 1)
    if schedule == "constant":
        return optax.warmup_constant_schedule(start, learning_rate, warmup_steps)
    assert schedule == "cosine", schedule
    end = final_fraction * learning_rate
    return optax.warmup_cosine_decay_schedule(start, learning_rate, warmup_steps, num_steps, end)


def join_phases(phases: Sequence[Phase], *, num_steps: int):
    """Build the learning rate over phases, a function of update i from 0: int32[] -> float32[].

    A first phase that is linear or a cosine starts from 0, as published (arXiv:2412.19437, section
    4.2): update 0 fills Adam's moments and moves nothing.

    Raises:
        ValueError: for a first phase without a rate, and unless the phases have num_steps updates
            in all.
    """
    if phases and phases[0].to is None:
        raise ValueError("phases[0].to=None: the first phase needs a rate; set it")
    # rate: the previous phase's final rate, None before the first phase
    schedules, rate = [], None
    ends: list[int] = []
    for phase in phases:
        phase_rate = rate if phase.to is None else phase.to
        schedules.append(_curve(phase.kind, 0.0 if rate is None else rate, phase_rate, phase.steps))
        ends.append(phase.steps + (ends[-1] if ends else 0))
        rate = phase_rate
    total = ends[-1] if ends else 0
    if total != num_steps:
        more_or_fewer = f"{abs(total - num_steps)} {'more' if total > num_steps else 'fewer'}"
        raise ValueError(
            f"phases={[phase.steps for phase in phases]} take {total} updates in all, {more_or_fewer} than "
            f"the {num_steps} of the run; change the steps of a phase, or the run's"
        )
    return optax.join_schedules(schedules, ends[:-1])


def pairs_of(numbers: Number | Sequence[tuple[int, Number]]) -> Sequence[tuple[int, Number]]:
    """Return a number as pairs (first update, number); pairs are returned as they are."""
    return numbers if isinstance(numbers, (tuple, list)) else ((0, numbers),)


def stepwise(
    numbers: float | Sequence[tuple[int, float]],
) -> Callable[[int | jax.Array], jax.Array]:
    """Build a function of the update, int32[] -> float32[], for a number that jumps.

    ((0, 0.3), (166_000, 0.1)) is 0.3 before update 166 000, and 0.1 from there on.

    Args:
        numbers: a number, or pairs (first update, number); the first updates begin at 0 and rise.
    """
    starts, values = zip(*pairs_of(numbers), strict=True)
    # numpy's arrays, so that a plan compiles nothing
    start_array, value_array = np.array(starts, np.int32), np.array(values, np.float32)
    # side="right": a number applies from its first update on
    return lambda update: jnp.asarray(value_array)[
        jnp.searchsorted(start_array, update, side="right") - 1
    ]


def number_at(numbers: Number | Sequence[tuple[int, Number]], update: int) -> Number:
    """Return the number of `stepwise` at an update, on the host.

    An int stays an int here, as batch sizes and other shapes need it.
    """
    return [number for start, number in pairs_of(numbers) if start <= update][-1]


def _curve(kind, start, end, steps):
    if kind == "constant":
        return optax.constant_schedule(end)
    is_linear = kind == "linear"
    remaining_fraction = (
        optax.linear_schedule(1, 0, steps) if is_linear else optax.cosine_decay_schedule(1, steps)
    )
    # remaining_fraction goes from 1 to 0
    return lambda i: end + (start - end) * remaining_fraction(i)
