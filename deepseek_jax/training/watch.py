"""What a run checks of its own numbers while it trains, because nothing else would show that it is wrong."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.errors import BrokenTerm, NotFinite
from deepseek_jax.parallel.shard import on_device
from deepseek_jax.training.nonfinite import broken_group, keys_of


class Limit(NamedTuple):
    """The largest value that a metric may have, and what a larger one, or NaN, means."""

    largest: float
    meaning: str


@dataclasses.dataclass(frozen=True)
class Checks:
    """What training.loop.train checks besides gradients and parameters.

    limits: metric of train_step -> its Limit. terms: metric -> what it means that it stays exactly 0, with
    the field to change. learns: beginnings of names; each part of the parameters with such a name has to get
    a gradient. of_line(step, line): raises for a line that cannot be right. locate(state, batch, rng):
    nonfinite.locate for the loss of train_step; None where nothing is located. weights(batch) -> {metric: how
    much of the batch it is a mean over}, by which a line of several updates weighs it; others count alike.
    before_first(state, batch), after_first(metrics): raise for a first update of the phase that is wrong.
    """

    limits: Mapping[str, Limit] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    learns: tuple[str, ...] = ("lora_",)
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
    """Looks for terms and parts of a phase that do nothing from its start, at the lines that it logs."""

    def __init__(self, checks: Checks, phase: str, lines: int):
        self.phase, self.lines, self.learns = phase, lines, checks.learns
        # Those that have not been seen at work, and the lines in which they were 0
        self.waiting, self.zeros = dict(checks.terms), Counter()

    def look(self, step: int, line, state, last: bool):
        """Look at a line, and at the state after its step. last: whether it is the phase's last line.

        Raises BrokenTerm for a term that is exactly 0 in each of the first `lines` lines, or in all of them,
        and for a part without a gradient where others have one.
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
        if self.learns:
            self._look_at_parts(step, state)

    def _look_at_parts(self, step, state):
        learned = _learned(state.opt_state, self.learns)
        # Before any part has a gradient, such as where all rewards were equal, nothing follows
        if not learned or any(learned.values()):
            self.learns = ()
        if self.learns == () and not all(learned.values()):
            idle = ", ".join(name for name, moved in learned.items() if not moved)
            raise BrokenTerm(
                f"{self.phase}: {idle} had no gradient up to step {step}, while other parameters had one: "
                "nothing in the loss reads it; leave it out of what is trained, such as an adapter's "
                "targets, or look at the loss"
            )


def _learned(opt_state, names):
    """{part: whether a mean of its gradients is not 0}, of the parts whose names begin so."""
    found = {}
    for path, moment in jax.tree.leaves_with_path(opt_state):
        keys = keys_of(path)
        at = [i for i, key in enumerate(keys) if key.startswith(names)]
        if at and any(getattr(key, "name", None) == "mu" for key in path):
            # A pair of lora_a and lora_b is one part: while b is 0, a has no gradient
            part = keys[: at[0]] if keys[at[0]].startswith("lora_") else keys[: at[0] + 1]
            found.setdefault(".".join(part), []).append(moment)
    return {name: bool(_any_moved(moments)) for name, moments in found.items()}


@jax.jit
def _any_moved(moments):
    return jnp.stack([(moment != 0).any() for moment in on_device(moments)]).any()


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
