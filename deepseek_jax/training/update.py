"""The update that every recipe makes: as a jitted program, as a plain step, and in two halves.

Gradients are added up over micro-batches. Then the optimizer moves the parameters, and the
balancing bias moves with the experts' load.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deepseek_jax.costs.chips import chip_of
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.ops.routing import load_metrics, updated_bias
from deepseek_jax.parallel.shard import on_device
from deepseek_jax.training.micro_batches import accumulated
from deepseek_jax.training.nonfinite import locate
from deepseek_jax.training.state import Create, TrainState, state_maker
from deepseek_jax.trees import PyTree


class Reference(NamedTuple):
    """A reference policy that follows the trained policy.

    Attributes:
        every: the number of updates after which the reference is replaced.
        of: of(params) -> the new reference.
        places: the reference's shardings.
    """

    every: int
    of: Callable
    places: Any


class UpdateOptions(NamedTuple):
    """Options of an update.

    Attributes:
        bias_update_speed: as in make_train_step.
        watched: as in make_train_step.
        report: report(state) -> further metrics, from the state after the update.
        reference: None where the state's reference does not change.
    """

    bias_update_speed: Callable | None = None
    watched: str | None = None
    report: Callable = lambda state: {}
    reference: Reference | None = None


NOTHING = UpdateOptions()


def create_update(
    settings,
    loss_fn: Callable,
    params: PyTree,
    mesh: Mesh,
    *,
    trained_parts: tuple[str, ...] = (),
    micro_batches: int | None = None,
    beside: UpdateOptions = NOTHING,
) -> tuple[Create, "Update"]:
    """Build (create, update), the two functions that make and change a run's TrainState.

    create(params), jitted, donates params and returns the TrainState, without a reference. update
    is an Update: a run calls it, and a plan compiles the same one.

    Args:
        settings: has make_optimizer(), optimizer and micro_batches.
        params: arrays, or ShapeDtypeStructs with shardings.
        trained_parts: the models.layers.PARTS that the loss trains. The other parts and router biases do
            not change.
        micro_batches: replaces settings.micro_batches.
    """
    tx = settings.make_optimizer(trained_parts=trained_parts)
    create, state_shardings = state_maker(params, tx, mesh, settings.optimizer.moment_memory)
    if beside.reference is not None:
        state_shardings = state_shardings.replace(reference=beside.reference.places)
    return create, Update(
        loss_fn, tx, state_shardings, micro_batches or settings.micro_batches, beside
    )


class Update:
    """The update of a run: update(state, batch, rng, *more) -> (state, metrics), jitted.

    The state is donated. If a batch has sampled_by, the fingerprint of the parameters that sampled
    it, there is a metric stale_params: 1.0 if it differs from the fingerprint of the state's
    parameters. sampled_by=0 is not compared.

    Args:
        loss_fn: loss_fn(params, batch, rng, *more), otherwise as in make_train_step.
        tx: as in make_train_step.
        placed: a TrainState of shardings.
        micro_batches: as in make_train_step.
    """

    def __init__(
        self,
        loss_fn: Callable,
        tx: optax.GradientTransformation,
        placed: TrainState,
        micro_batches: int = 1,
        beside: UpdateOptions = NOTHING,
    ) -> None:
        self.loss_fn, self.micro_batches, self.reference = loss_fn, micro_batches, beside.reference
        # The number of updates so far, which only a reference that follows the policy needs
        self.done: int | None = None

        def train_step(state, batch, rng, *more):
            params_fingerprint = _fingerprint_beside(state, batch)
            step = make_train_step(
                lambda params, batch, rng: loss_fn(params, batch, rng, *more),
                tx,
                micro_batches=micro_batches,
                bias_update_speed=beside.bias_update_speed,
                watched=beside.watched,
            )
            state, metrics = step(state, batch, rng)
            if params_fingerprint is not None:
                is_stale = params_fingerprint != batch["sampled_by"]
                metrics["stale_params"] = is_stale.astype(jnp.float32)
            return state, metrics | beside.report(state)

        self.jitted = jit_placed(train_step, placed)
        self.trace = self.jitted.trace

    def __call__(self, state, batch, rng, *more):
        """Make one update, and replace a reference that follows the policy when it is due."""
        if self.reference is None:
            return self.jitted(state, batch, rng, *more)
        if self.done is None:
            # Once only: reading waits for the device
            self.done = int(state.step)
        state, metrics = self.jitted(state, batch, rng, *more)
        self.done += 1
        if self.done % self.reference.every == 0:
            state = state.replace(reference=self.reference.of(state.params))
        return state, metrics

    def locate(self, state: TrainState, batch: dict, rng: jax.Array, *more) -> str:
        """Say in words where an update was not finite, as nonfinite.locate does.

        Args:
            state: the TrainState after the update.
        """
        return locate(self.loss_fn, self.micro_batches, state, batch, rng, *more)


def _fingerprint_beside(state, batch):
    """Return the fingerprint of the state's parameters, to compare it with the batch's sampled_by.

    It is 0 where sampled_by is 0, and None where the batch has no sampled_by.
    """
    if "sampled_by" not in batch:
        return None
    compute_fingerprint = functools.partial(fingerprint, state.model)
    return jax.lax.cond(batch["sampled_by"] == 0, lambda: jnp.uint32(0), compute_fingerprint)


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    bias_update_speed: Callable | None = None,
    watched: str | None = None,
) -> Callable:
    """Build train_step(state, batch, rng) -> (state, metrics), to be jitted once with donation.

    The step reports the metrics of loss_fn, and also:

    - loss;
    - grad_norm, before clipping;
    - nonfinite: 1.0 where the norm of the gradients is not finite. Then the update is skipped:
      parameters and optimizer state do not change. Two things still change: the update count that
      schedules read, and the router_bias of layers with a finite load, which follows only the load;
    - load_metrics in place of the metric `routing`, and, where buffers for experts are bounded,
      expert_overflows: how often tokens overflowed one.

    Args:
        loss_fn: loss_fn(params, batch, rng) -> (loss, metrics) for a model's params. Both results
            are divided by totals of the whole batch, so that the results of micro-batches add up
            (for names that end in _max, the largest counts). It may have the metric `routing`, a
            dict from a key of params to a models.moe.Routing, of one layer or of all layers with a
            leading axis l.
        tx: the optimizer.
        micro_batches: cuts each array of the batch, a dict, along its leading axis. Each
            micro-batch gets all scalars.
        bias_update_speed: a function of the update count. With it, each update also moves the
            router_bias below each key of `routing` once (arXiv:2412.19437, section 2.1.2).
        watched: the name of a scalar of the batch that tx gets as `value`, for a schedule that
            follows it.

    Raises:
        ValueError: while tracing, for rows that do not split, or for a bias speed without routing.
    """
    gradients = gradients_of(loss_fn, micro_batches)
    update = update_of(tx, bias_update_speed=bias_update_speed)

    def train_step(state, batch, rng):
        (loss, metrics), grads = gradients(state, batch, rng)
        value = None if watched is None else batch[watched]
        return update(state, grads, metrics | {"loss": loss}, value)

    return train_step


def gradients_of(loss_fn: Callable, micro_batches: int) -> Callable:
    """Build (state, batch, rng) -> ((loss, metrics), gradients), the first half of make_train_step.

    The gradients are for the trained parameters.

    Args:
        loss_fn: as in make_train_step.
        micro_batches: as in make_train_step.
    """

    def gradients(state, batch, rng):
        def loss_of_trained(params, batch, rng):
            return loss_fn(state.replace(params=params).model, batch, rng)

        value_and_gradient = jax.value_and_grad(loss_of_trained, has_aux=True)
        if micro_batches > 1:
            value_and_gradient = accumulated(value_and_gradient, micro_batches)
        # Folds in only the step, so that a resumed run draws what an uninterrupted one draws
        return value_and_gradient(state.params, batch, jax.random.fold_in(rng, state.step))

    return gradients


def update_of(
    tx: optax.GradientTransformation, *, bias_update_speed: Callable | None = None
) -> Callable:
    """Build update(state, grads, metrics, value=None) -> (state, metrics).

    This is the second half of make_train_step. grads are for the trained parameters. metrics have
    the loss, and may have routing as in make_train_step. value is for a schedule of tx that follows
    it; None where there is no such schedule.
    """
    # It takes `value` whether or not it has such a schedule
    tx = optax.with_extra_args_support(tx)

    def update(state, grads, metrics, value=None):
        metrics = dict(metrics)
        routings = metrics.pop("routing", {})
        loads = {name: routing.load for name, routing in routings.items()}
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(grad_norm)
        opt_before = on_device(state.opt_state)

        def apply():
            updates, opt_state = tx.update(grads, opt_before, state.params, value=value)
            return optax.apply_updates(state.params, updates), opt_state

        def skip():
            return state.params, _counted(opt_before)

        # A branch, not a select: for a select, the old moments would have to outlive the new ones
        params, opt_state = jax.lax.cond(is_finite, apply, skip)
        if bias_update_speed is not None:
            params = _move_router_biases(params, loads, bias_update_speed(state.step))

        metrics |= load_metrics(loads)
        overflows = [r.overflows.sum() for r in routings.values() if r.overflows is not None]
        if overflows:
            metrics["expert_overflows"] = sum(overflows)
        metrics |= {"grad_norm": grad_norm, "nonfinite": 1.0 - is_finite}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return update


def _counted(opt_state):
    """Add 1 to the update counts of a state's schedules, and change nothing else."""

    def is_schedule(x):
        return isinstance(x, optax.ScaleByScheduleState)

    def count(x):
        return x._replace(count=optax.safe_increment(x.count)) if is_schedule(x) else x

    return jax.tree.map(count, opt_state, is_leaf=is_schedule)


def _move_router_biases(params, loads, speed):
    if not loads:
        raise ValueError(
            "a bias_update_speed needs experts, and this model reports no routing; "
            "set bias_update_speed to 0"
        )

    def move(path, leaf):
        module_name, leaf_name = path[0].key, path[-1].key
        # A module that this loss did not run reports no load
        if leaf_name != "router_bias" or module_name not in loads:
            return leaf
        # A layer after one that gave NaN has a NaN load: its bias stays as it is
        has_finite_load = jnp.isfinite(loads[module_name]).all(-1, keepdims=True)
        return jnp.where(has_finite_load, updated_bias(leaf, loads[module_name], speed=speed), leaf)

    return jax.tree.map_with_path(move, params)


def jit_placed(function: Callable, placed: PyTree) -> jax.stages.Wrapped:
    """Jit function(tree, ...) -> (tree, metrics) for trees with the shardings `placed`.

    The first argument is donated. On a known chip the function is compiled with that chip's
    options.
    """
    chip = chip_of(jax.tree.leaves(placed)[0].mesh.devices.ravel())
    return jax.jit(
        function,
        donate_argnums=0,
        out_shardings=(placed, None),
        compiler_options=None if chip is None else chip.options,
    )
