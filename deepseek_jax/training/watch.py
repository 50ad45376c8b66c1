"""Checks of a run's own numbers while it trains, for mistakes that nothing else would show.

Tests: tests/reliability/test_silent_faults.py.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepseek_jax.errors import BrokenTerm, NotFinite
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import on_device
from deepseek_jax.training.nonfinite import broken_group, keys_of, layer_axes, read_flags

# Fields of optimizer states that are means of gradients: Adam's and Muon's
MOMENTS = "mu", "trace"


class Limit(NamedTuple):
    """The largest value that a metric may have.

    Attributes:
        largest: a larger value ends the run, and so does NaN.
        meaning: the cause of a larger value, for the message.
    """

    largest: float
    meaning: str


@dataclasses.dataclass(frozen=True)
class Checks:
    """What training.loop.train checks in addition to gradients and parameters.

    Attributes:
        limits: metric of train_step -> its Limit.
        terms: metric -> the cause if it stays exactly 0, with the field to change.
        untrained: beginnings of a dotted name, or of the rest of one after a dot, such as "mtp_"
            and "head.bias". Parameters with such a name may have no gradient in the first updates.
            All others have to get one.
        of_line: of_line(step, line) raises for a line that cannot be right.
        locate: locate(state, batch, rng) is nonfinite.locate for the loss of train_step; None
            locates nothing.
        weights: weights(batch) -> {metric: the amount of the batch that it is a mean over}. A line
            of several updates weights their values by it; metrics without a weight count alike.
        before_first: before_first(state, batch) raises if the phase's first update would be wrong.
        after_first: after_first(metrics) raises if the phase's first update was wrong.
    """

    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    of_line: Callable | None = None
    locate: Callable | None = None
    weights: Callable = lambda batch: {}
    before_first: Callable = lambda state, batch: None
    after_first: Callable = lambda metrics: None


def check_terms(
    weights: Mapping[str, float],
    values: Mapping[str, float],
    gradient_norms: Mapping[str, float],
):
    """Raise BrokenTerm, naming their weights, for terms that have no effect at the first update.

    A term or its gradient is 0 or not finite if its inputs are missing or equal, or if a mask
    leaves no token.

    Args:
        weights: {the config's field of a term's weight: the weight}.
        values: {field: the term's value}.
        gradient_norms: {field: the norm of the term's gradient}.
    """
    faults = []
    for field, weight in weights.items():
        numbers = {"value": float(values[field]), "gradient norm": float(gradient_norms[field])}
        faults += [
            f"{field}={float(weight):g}, and the term's {quantity} is {number:g}"
            for quantity, number in numbers.items()
            if number == 0 or not math.isfinite(number)
        ]
    if faults:
        raise BrokenTerm(
            "; ".join(faults)
            + ": check that both sides of the term are in the batch, differ and are not masked out, or set "
            "that weight to 0"
        )


class Idle:
    """A check for terms and parameters that do nothing from the start of a phase on, line by line.

    Args:
        lines: the number of idle lines or updates that ends the run, faults.idle_lines.
        params: the trained parameters before the first update.
        warm_up: the updates before the learning rate reaches its full value.
    """

    def __init__(self, checks: Checks, phase: str, lines: int, params, warm_up: int):
        self.phase, self.lines, self.untrained = phase, lines, checks.untrained
        # The terms that have always been 0 so far, and in how many lines they were 0
        self.waiting = dict(checks.terms)
        self.zeros: Counter[str] = Counter()
        # The number of lines in which some parameter had a gradient; None once all have had one
        self.learning: int | None = 0
        # The fingerprint of the first weights, None once they have moved
        self.weights: int | None = _weights(params)
        # The updates that had a gradient
        self.updates, self.warm_up = 0, warm_up

    def look(self, step: int, line, state, updates: int, last: bool):
        """Look at a logged line, and at the state after its step.

        Args:
            updates: the updates since the line before that had a gradient.
            last: whether it is the phase's last line.

        Raises:
            BrokenTerm: for a term that is exactly 0 in each of the first `lines` lines, or in all
                lines of a shorter phase; for a parameter without a gradient in the first `lines`
                lines in which others have one; and for `lines` updates with a gradient, after the
                warm-up, that moved no bit of any weight.
        """
        for name in [name for name in self.waiting if name in line]:
            if line[name] != 0:
                # A term that becomes 0 later has been learned, and is not idle
                del self.waiting[name]
                continue
            self.zeros[name] += 1
            if self.zeros[name] >= self.lines or last:
                raise BrokenTerm(
                    f"{self.phase}: {name} is exactly 0 in each of the {self.zeros[name]} lines up to step "
                    f"{step}: {self.waiting[name]}"
                )
        if self.weights is not None:
            self._look_at_weights(step, state, updates)
        self._look_at_gradients(step, state, last)

    def _look_at_weights(self, step, state, updates):
        is_first, self.updates = self.updates == 0, self.updates + updates
        # The learning rate of a warm-up's first update may be 0
        if not self.updates or (step == 0 and self.warm_up):
            return
        if _weights(state.params) != self.weights:
            self.weights = None
            return
        message = (
            f"{self.phase}: {self.updates} updates up to step {step} had a gradient and moved no bit of any "
            "weight: raise optimizer.learning_rate"
        )
        if self.updates - self.warm_up >= self.lines:
            raise BrokenTerm(message)
        if is_first or self.warm_up:
            say(message)

    def _look_at_gradients(self, step, state, last):
        if self.learning is None:
            return
        learned_flags = _learned(state.opt_state, self.untrained)
        idle_names = _idle(learned_flags)
        # A line in which no parameter has a gradient proves nothing: all rewards may have been
        # equal
        self.learning += any(moved.any() for moved in learned_flags.values())
        if not idle_names:
            self.learning = None
        elif self.learning >= self.lines or (last and self.learning):
            raise BrokenTerm(
                f"{self.phase}: {', '.join(idle_names)} had no gradient up to step {step}, while other "
                "parameters had one: nothing in the loss reads it; leave it out of what is trained, such as "
                "an adapter's targets, or look at the loss"
            )


def _weights(params):
    """Return the fingerprint of the parameters that the optimizer moves.

    Router biases are left out, because they follow the experts' load.
    """
    flat_params = {path: x for path, x in flatten_dict(params).items() if path[-1] != "router_bias"}
    return int(_fingerprint(flat_params))


_fingerprint = jax.jit(fingerprint)


def _learned(opt_state, untrained):
    """Return {parameter: whether a mean of its gradients is not 0}; bool[l] for stacked layers.

    Parameters that Checks.untrained names are left out.
    """
    learned_flags: dict[str, np.ndarray] = {}
    for path, moved in jax.tree.leaves_with_path(read_flags(_moved(_moments_of(opt_state)))):
        keys = keys_of(path)
        if any(f".{beginning}" in f".{'.'.join(keys)}" for beginning in untrained):
            continue
        # lora_a and lora_b count as one parameter: while b is 0, a has no gradient
        name = ".".join(key for key in keys if not key.startswith("lora_"))
        learned_flags[name] = learned_flags.get(name, False) | moved
    return learned_flags


def _idle(learned_flags):
    """Return the names of the parameters of _learned that have no gradient."""
    idle_names = []
    for name, moved in learned_flags.items():
        if not moved.any():
            idle_names.append(name)
        elif not moved.all():
            idle_names += [f"layer {i} of {name}" for i in np.flatnonzero(~moved)]
    return idle_names


def _moments_of(opt_state):
    """Return the optimizer's means of gradients, as a tree like the parameters."""
    moments = {}
    for path, moment in jax.tree.leaves_with_path(opt_state):
        positions = [i for i, key in enumerate(path) if getattr(key, "name", None) in MOMENTS]
        if positions:
            moments[tuple(keys_of(path[positions[0] :]))] = moment
    return unflatten_dict(moments)


@jax.jit
def _moved(moments):
    return jax.tree.map_with_path(
        lambda path, x: (x != 0).any(layer_axes(path, x)), on_device(moments)
    )


def check_params(state, step: int, phase: str):
    """Raise NotFinite, naming the first group, if an update made parameters NaN or infinite.

    The gradients do not show this: a finite gradient times an infinite rate is not finite.
    """
    group = broken_group(state.params)
    if group is not None:
        raise NotFinite(
            f"{phase}: after step {step} the parameters of {group} are not finite, though their gradients "
            "were: the update is too large; lower optimizer.learning_rate. This step is not saved"
        )
