"""The one update of every recipe, as a jitted program and what stands around it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.costs.chips import chip_of
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.dispatch import larger_buffers
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.nonfinite import locate
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.step import make_train_step

# How much larger a buffer for experts' tokens is after an overflow, and after all of them at most
GROWTH, MOST = 1.25, 2.0


class Reference(NamedTuple):
    """A reference that follows the policy: of(params) takes its place after `every` updates. places: its
    shardings.
    """

    every: int
    of: Callable
    places: Any


class Beside(NamedTuple):
    """What an update does beside the optimizer's step. bias_update_speed, watched: of make_train_step.
    report(state) -> further metrics, of the state after. reference: None where the state's stays as it is.
    """

    bias_update_speed: Callable | None = None
    watched: str | None = None
    report: Callable = lambda state: {}
    reference: Reference | None = None


NOTHING = Beside()


def create_update(
    settings,
    loss_fn,
    params,
    mesh: Mesh,
    *,
    parts: tuple[str, ...] = (),
    micro_batches: int | None = None,
    beside: Beside = NOTHING,
):
    """(create, update): create(params), jitted, donates them and returns the TrainState, without a reference;
    update is THE Update of a run, and what its plan compiles.

    settings: has make_optimizer(), optimizer and micro_batches. params: arrays, or ShapeDtypeStructs with
    shardings. parts: those of models.layers.PARTS that the loss trains; the others and router biases stay as
    they are. micro_batches: in place of the settings'.
    """
    tx = settings.make_optimizer(parts=parts)
    create, placed = state_maker(params, tx, mesh, settings.optimizer.moment_memory)
    if beside.reference is not None:
        placed = placed.replace(reference=beside.reference.places)
    return create, Update(loss_fn, tx, placed, micro_batches or settings.micro_batches, beside)


class Update:
    """update(state, batch, rng, *more) -> (state, metrics), jitted; the state is donated.

    loss_fn(params, batch, rng, *more), tx, micro_batches: of make_train_step. placed: the TrainState of its
    shardings. A batch with sampled_by, the fingerprint of the parameters that sampled it, gets the metric
    stale_params: 1.0 where it is not that of the state's; 0 is not compared.
    """

    def __init__(self, loss_fn, tx, placed, micro_batches: int = 1, beside: Beside = NOTHING):
        self.loss_fn, self.micro_batches, self.reference = loss_fn, micro_batches, beside.reference
        # Updates so far, where the reference follows them
        self.done = None

        def train_step(state, batch, rng, *more):
            own = _fingerprint_beside(state, batch)
            step = make_train_step(
                lambda params, batch, rng: loss_fn(params, batch, rng, *more),
                tx,
                micro_batches=micro_batches,
                bias_update_speed=beside.bias_update_speed,
                watched=beside.watched,
            )
            state, metrics = step(state, batch, rng)
            if own is not None:
                stale = own != batch["sampled_by"]
                metrics["stale_params"] = stale.astype(jnp.float32)
            return state, metrics | beside.report(state)

        self.jitted = Buffered(train_step, placed)
        self.trace = self.jitted.trace

    def __call__(self, state, batch, rng, *more):
        if self.reference is not None and self.done is None:
            # Once only: reading waits for the device
            self.done = int(state.step)
        state, metrics = self.jitted(state, batch, rng, *more)
        if self.reference is not None:
            self.done += 1
            if self.done % self.reference.every == 0:
                state = state.replace(reference=self.reference.of(state.params))
        return state, metrics

    def locate(self, state, batch, rng, *more):
        """Where an update was not finite, in words. state: after it, see nonfinite.locate."""
        return locate(self.loss_fn, self.micro_batches, state, batch, rng, *more)


def _fingerprint_beside(state, batch):
    """The fingerprint of the state's parameters beside the batch's sampled_by: 0 where that is 0; None where
    the batch has none.
    """
    if "sampled_by" not in batch:
        return None
    read = functools.partial(fingerprint, state.model)
    return jax.lax.cond(batch["sampled_by"] == 0, lambda: jnp.uint32(0), read)


class Buffered:
    """function(tree, ...) -> (tree, metrics), jitted for trees with the shardings `placed`; the first one is
    donated. Once tokens have overflowed the buffers for experts, it is compiled anew with larger ones: a call
    with an overflow is right, but slow.
    """

    def __init__(self, function, placed):
        self._function, self._placed, self._factor = function, placed, 1.0
        # expert_overflows of the latest calls
        self._unread = []
        self._compile()

    def _compile(self):
        factor = self._factor

        # Another function, or jit would take the program that it has
        def step(*arguments):
            with larger_buffers(factor):
                return self._function(*arguments)

        chip = chip_of(jax.tree.leaves(self._placed)[0].mesh.devices.ravel())
        self._jitted = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(self._placed, None),
            compiler_options=chip and chip.options,
        )

    def __call__(self, *arguments):
        # The latest call but one: the device has its result by now, and nothing waits
        overflowed = len(self._unread) > 1 and float(self._unread.pop(0)) > 0
        if overflowed and self._factor * GROWTH <= MOST:
            self._factor *= GROWTH
            say(
                "experts got more tokens than expert_buffer has room for; compiling with room for "
                f"{self._factor:.2f} times as many"
            )
            self._unread.clear()
            self._compile()
        state, metrics = self._jitted(*arguments)
        if "expert_overflows" in metrics:
            self._unread.append(metrics["expert_overflows"])
        return state, metrics

    def trace(self, *arguments):
        """As jax.jit's."""
        return self._jitted.trace(*arguments)
