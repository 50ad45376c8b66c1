"""What a run checks of its own numbers while it trains, because nothing else would show that it is wrong."""

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
    """The largest value that a metric may have, and what a larger one, or NaN, means."""

    largest: float
    meaning: str


@dataclasses.dataclass(frozen=True)
class Checks:
    """What training.loop.train checks besides gradients and parameters.

    limits: metric of train_step -> its Limit. terms: metric -> what it means that it stays exactly 0, with
    the field to change. untrained: beginnings of names, such as "mtp_" and "head.bias"; parameters with such
    a name may have no gradient in the first updates, all others have to get one. of_line(step, line): raises
    for a line that cannot be right. locate(state, batch, rng): nonfinite.locate for the loss of train_step;
    None where nothing is located. weights(batch) -> {metric: how much of the batch it is a mean over}, by
    which a line of several updates weighs it; others count alike. before_first(state, batch),
    after_first(metrics): raise for a first update of the phase that is wrong.
    """

    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    of_line: Callable | None = None
    locate: Callable | None = None
    weights: Callable = lambda batch: {}
    before_first: Callable = lambda state, batch: None
    after_first: Callable = lambda metrics: None


def check_terms(weights, values, gradient_norms):
    """Raise BrokenTerm, naming their weights, for terms that have no effect at the first update.

    weights, values, gradient_norms: {field of a term's weight: number}. A term or its gradient is 0 or not
    finite if its inputs are missing or equal, or if a mask leaves no token.
    """
    faults = []
    for field, weight in weights.items():
        measured = {"value": float(values[field]), "gradient norm": float(gradient_norms[field])}
        faults += [
            f"{field}={float(weight):g}, and the term's {what} is {number:g}"
            for what, number in measured.items()
            if number == 0 or not math.isfinite(number)
        ]
    if faults:
        raise BrokenTerm(
            "; ".join(faults)
            + ": check that both sides of the term are in the batch, differ and are not masked out, or set "
            "that weight to 0"
        )


class Idle:
    """Looks for terms and parameters of a phase that do nothing from its start, at the lines that it logs.

    params: those that are trained, before the first update. warm_up: updates before the rate is whole.
    """

    def __init__(self, checks: Checks, phase: str, lines: int, params, warm_up: int):
        self.phase, self.lines, self.untrained = phase, lines, checks.untrained
        # Those that have not been seen at work, and the lines in which they were 0
        self.waiting, self.zeros = dict(checks.terms), Counter()
        # Lines in which some parameters had a gradient; None once all have had one
        self.learning = 0
        # The fingerprint of the weights, None once they have moved; updates that had a gradient
        self.weights, self.updates, self.warm_up = _weights(params), 0, warm_up

    def look(self, step: int, line, state, updates: int, last: bool):
        """Look at a line, and at the state after its step. updates: those since the line before that had a
        gradient. last: whether it is the phase's last line.

        Raises BrokenTerm for a term that is exactly 0 in each of the first `lines` lines, or in all of them;
        for a parameter without a gradient in the first `lines` lines in which others have one; and for
        `lines` updates with a gradient, after the warm-up, that moved no bit of any weight.
        """
        for name in [name for name in self.waiting if name in line]:
            if line[name] != 0:
                # What becomes 0 later on is learned, not idle
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
        if self.learning is not None:
            self._look_at_gradients(step, state, last)

    def _look_at_weights(self, step, state, updates):
        is_first, self.updates = self.updates == 0, self.updates + updates
        # The rate of a warm-up's first update may be 0
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
        learned = _learned(state.opt_state, self.untrained)
        idle = _idle(learned)
        # Before any parameter has a gradient, such as where all rewards were equal, nothing follows
        self.learning += any(moved.any() for moved in learned.values())
        if not idle:
            self.learning = None
        elif self.learning >= self.lines or (last and self.learning):
            raise BrokenTerm(
                f"{self.phase}: {', '.join(idle)} had no gradient up to step {step}, while other parameters "
                "had one: nothing in the loss reads it; leave it out of what is trained, such as an "
                "adapter's targets, or look at the loss"
            )


def _weights(params):
    """The fingerprint of what the optimizer moves: not of router biases, which follow the experts' load."""
    flat = {path: x for path, x in flatten_dict(params).items() if path[-1] != "router_bias"}
    return int(_fingerprint(flat))


_fingerprint = jax.jit(fingerprint)


def _learned(opt_state, untrained):
    """{parameter: whether a mean of its gradients is not 0}, bool[l] for stacked layers, without parameters
    whose names begin with one of `untrained`.
    """
    found = {}
    for path, moved in jax.tree.leaves_with_path(read_flags(_moved(_moments_of(opt_state)))):
        keys = keys_of(path)
        if any(f".{each}" in f".{'.'.join(keys)}" for each in untrained):
            continue
        # A pair of lora_a and lora_b is one: while b is 0, a has no gradient
        name = ".".join(key for key in keys if not key.startswith("lora_"))
        found[name] = found.get(name, False) | moved
    return found


def _idle(learned):
    """The names of the parameters of _learned without a gradient: [str]."""
    idle = []
    for name, moved in learned.items():
        if not moved.any():
            idle.append(name)
        elif not moved.all():
            idle += [f"layer {i} of {name}" for i in np.flatnonzero(~moved)]
    return idle


def _moments_of(opt_state):
    """{path in the parameters: mean of gradients}."""
    found = {}
    for path, moment in jax.tree.leaves_with_path(opt_state):
        at = [i for i, key in enumerate(path) if getattr(key, "name", None) in MOMENTS]
        if at:
            found[tuple(keys_of(path[at[0] :]))] = moment
    return unflatten_dict(found)


@jax.jit
def _moved(moments):
    return jax.tree.map_with_path(
        lambda path, x: (x != 0).any(layer_axes(path, x)), on_device(moments)
    )


def check_params(state, step: int, phase: str):
    """Raise NotFinite, naming the first group, where an update left parameters that are NaN or infinite.

    Gradients do not show it: a finite gradient times an infinite rate is not finite.
    """
    group = broken_group(state.params)
    if group is not None:
        raise NotFinite(
            f"{phase}: after step {step} the parameters of {group} are not finite, though their gradients "
            "were: the update is too large; lower optimizer.learning_rate. This step is not saved"
        )
