"""One update: gradients, summed over micro-batches, then the optimizer and the balancing bias."""

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.ops.routing import updated_bias
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.shard import on_device


def make_train_step(
    loss_fn, tx, *, micro_batches: int = 1, bias_update_speed=None, watched: str | None = None
):
    """Build train_step(state, batch, rng) -> (state, metrics), to be jitted once with donation.

    loss_fn(params, batch, rng) -> (loss, metrics) of a model's params, both divided by totals of the whole
    batch, so that those of micro-batches add up (for names ending in _max, the largest counts). batch: a dict
    of arrays; micro_batches cuts each along its leading axis; each micro-batch gets all scalars.
    The metric routing, a dict from a key of params to models.moe.Routing, of one layer or of all with a
    leading axis l, is replaced by load_metrics and, where buffers for experts are bounded, by
    expert_overflows, how often tokens overflowed one. With bias_update_speed, a function of the update
    count, it also moves the router_bias below that key once an update (arXiv:2412.19437, section 2.1.2).
    watched: the name of a scalar of the batch that tx gets as `value`, for a schedule that follows it.
    Also reported: loss, grad_norm (before clipping) and nonfinite, 1.0 where the gradients' norm is
    not finite. Then the update is skipped: parameters and optimizer state stay as they were. Two
    things still change: the update count that schedules read, and the router_bias of layers whose
    load is finite, which follows the load alone.
    Raises ValueError at tracing for rows that do not split, or a bias speed without routing.
    """

    gradients = gradients_of(loss_fn, micro_batches)
    update = update_of(tx, bias_update_speed=bias_update_speed)

    def train_step(state, batch, rng):
        (loss, metrics), grads = gradients(state, batch, rng)
        value = None if watched is None else batch[watched]
        return update(state, grads, metrics | {"loss": loss}, value)

    return train_step


def gradients_of(loss_fn, micro_batches: int = 1):
    """Build (state, batch, rng) -> ((loss, metrics), gradients in the trained parameters), the first half of
    make_train_step. loss_fn, batch, micro_batches: as there.
    """

    def gradients(state, batch, rng):
        def loss_of_trained(params, batch, rng):
            return loss_fn(state.replace(params=params).model, batch, rng)

        value_and_gradient = jax.value_and_grad(loss_of_trained, has_aux=True)
        if micro_batches > 1:
            value_and_gradient = _accumulated(value_and_gradient, micro_batches)
        # From the step alone, so that a resumed run draws what an uninterrupted one draws
        return value_and_gradient(state.params, batch, jax.random.fold_in(rng, state.step))

    return gradients


def update_of(tx, *, bias_update_speed=None):
    """Build update(state, grads, metrics, value=None) -> (state, metrics), the second half of
    make_train_step.

    grads: in the trained parameters. metrics: with loss, and with routing as make_train_step takes it. value:
    for a schedule of tx that follows it, None for no such schedule.
    """
    # It takes `value` whether or not it has such a schedule
    tx = optax.with_extra_args_support(tx)

    def update(state, grads, metrics, value=None):
        metrics = dict(metrics)
        routings = metrics.pop("routing", {})
        loads = {name: routing.load for name, routing in routings.items()}
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        opt_before = on_device(state.opt_state)

        def apply():
            updates, opt_state = tx.update(grads, opt_before, state.params, value=value)
            return optax.apply_updates(state.params, updates), opt_state

        def skip():
            return state.params, _counted(opt_before)

        # A branch, not a select: for a select, the old moments would have to outlive the new ones
        params, opt_state = jax.lax.cond(finite, apply, skip)
        if bias_update_speed is not None:
            params = _move_router_biases(params, loads, bias_update_speed(state.step))

        metrics |= load_metrics(loads)
        overflows = [r.overflows.sum() for r in routings.values() if r.overflows is not None]
        if overflows:
            metrics["expert_overflows"] = sum(overflows)
        metrics |= {"grad_norm": grad_norm, "nonfinite": 1.0 - finite}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return update


def load_metrics(loads):
    """How evenly each layer's experts are used: -> dict of float32[]. loads: {key of params: Routing.load}.

    max_vio/LAYER: MaxVio (arXiv:2408.15664), max(load) / mean(load) - 1, 0 in perfect balance.
    load_entropy/LAYER: entropy of the load in nats, log(e) in perfect balance. LAYER is moe_0, ... or mtp_0,
    ...; max_vio is the mean over all.
    """
    layers = {}
    for name, load in loads.items():
        stacked = {f"moe_{i}": load_e for i, load_e in enumerate(load)}
        layers |= stacked if load.ndim == 2 else {name: load}
    violations = {f"max_vio/{name}": x.max() / x.mean() - 1 for name, x in layers.items()}
    entropies = {f"load_entropy/{name}": _entropy(x / x.sum()) for name, x in layers.items()}
    mean = {"max_vio": sum(violations.values()) / len(violations)} if layers else {}
    return mean | violations | entropies


def _entropy(share_e):
    return -jax.scipy.special.xlogy(share_e, share_e).sum()


def _accumulated(gradients, micro_batches):
    """The same function, run on one micro-batch after another; gradients add up in float32."""

    def run(params, batch, rng):
        rows, scalars = cut(batch, micro_batches)

        def body(total, xs):
            index, micro = xs
            # Each micro-batch needs random numbers of its own
            rng_i = jax.random.fold_in(rng, index)
            out, grads = gradients(params, micro | scalars, rng_i)
            return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads), out

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        grads, (loss, metrics) = jax.lax.scan(body, zeros, (jnp.arange(micro_batches), rows))
        metrics = {
            name: value.max(0) if name.endswith("_max") else jax.tree.map(lambda x: x.sum(0), value)
            for name, value in metrics.items()
        }
        return (loss.sum(), metrics), grads

    return run


def over_micro_batches(function, batch, micro_batches: int):
    """Apply function to each micro-batch in turn, as make_train_step cuts them: -> its results, stacked."""
    rows, scalars = cut(batch, micro_batches)
    return jax.lax.map(lambda micro: function(micro | scalars), rows)


def cut(batch, micro_batches: int):
    """(arrays [micro_batches, b / micro_batches, ...], scalars) of a batch, by name."""
    rows = {name: _split(name, x, micro_batches) for name, x in batch.items() if x.ndim}
    return rows, {name: x for name, x in batch.items() if not x.ndim}


def _split(name, array, micro_batches):
    """[b ...] -> [micro_batches, b / micro_batches, ...]: consecutive rows stay together."""
    rows = array.shape[0]
    if rows % micro_batches:
        raise ValueError(
            f"batch[{name!r}] has {rows} rows, which do not split into "
            f"micro_batches={micro_batches}; set micro_batches to a divisor of {rows}"
        )
    split = array.reshape(micro_batches, rows // micro_batches, *array.shape[1:])
    # Without this the devices could divide the micro-batches among them, in place of each one's rows
    return constrain(split, (None, "batch"))


def _counted(opt_state):
    """The optimizer's state with the update counts of its schedules one higher, and nothing else changed."""

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
        name, last = path[0].key, path[-1].key
        # A module that this loss did not run reports no load
        if last != "router_bias" or name not in loads:
            return leaf
        # A layer after one that gave NaN has a NaN load: its bias stays as it is
        counted = jnp.isfinite(loads[name]).all(-1, keepdims=True)
        return jnp.where(counted, updated_bias(leaf, loads[name], speed=speed), leaf)

    return jax.tree.map_with_path(move, params)
