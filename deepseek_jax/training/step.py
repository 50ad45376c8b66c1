"""One update: gradients, over micro-batches if asked, then the optimizer and the balancing bias."""

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.ops.routing import updated_bias
from deepseek_jax.parallel import constrain


def make_train_step(loss_fn, tx, *, micro_batches=1, bias_update_speed=0.0):
    """Build train_step(state, batch, rng) -> (state, metrics), to be jitted once with donation.

    loss_fn(params, batch, rng) -> (loss, metrics), both divided by totals of the whole batch, so
    that those of micro-batches add up (of names ending in _max the largest counts). batch: a dict
    of arrays; micro_batches cuts each along its own leading axis, and scalars go to all.
    The metric expert_load, float32[l e] tokens per expert, is taken out: with bias_update_speed > 0
    it moves params["moe_layers"]["ffn"]["router_bias"] once an update (arXiv:2412.19437, section
    2.1.2), and it is reported as max_vio, see max_violation.
    Also reported: loss, grad_norm (before clipping) and nonfinite, 1.0 where the gradients' norm is
    not finite: then the update is skipped, and parameters and optimizer stay as they were.
    Raises ValueError at tracing for rows that do not split, or a bias speed without expert_load.
    """
    gradients = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches > 1:
        gradients = _accumulated(gradients, micro_batches)

    def train_step(state, batch, rng):
        rng = jax.random.fold_in(rng, state.step)
        (loss, metrics), grads = gradients(state.params, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        load_le = metrics.get("expert_load")
        if bias_update_speed:
            params = _move_router_bias(params, load_le, bias_update_speed)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )

        metrics = {name: value for name, value in metrics.items() if name != "expert_load"}
        if load_le is not None:
            metrics["max_vio"] = max_violation(load_le)
        metrics |= {"loss": loss, "grad_norm": grad_norm, "nonfinite": 1.0 - finite}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def max_violation(load):
    """MaxVio (arXiv:2408.15664), averaged over layers: max(load) / mean(load) - 1.

    load: float32[l e], tokens per expert -> float32[]; 0 is perfect balance.
    """
    return jnp.mean(load.max(-1) / load.mean(-1) - 1)


def _accumulated(gradients, micro_batches):
    """The same function, run on one micro-batch after another; gradients add up in float32."""

    def run(params, batch, rng):
        rows = {name: _split(name, x, micro_batches) for name, x in batch.items() if x.ndim}
        scalars = {name: x for name, x in batch.items() if not x.ndim}

        def body(total, xs):
            index, micro = xs
            rng_i = jax.random.fold_in(rng, index)
            out, grads = gradients(params, micro | scalars, rng_i)
            return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads), out

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        grads, (loss, metrics) = jax.lax.scan(body, zeros, (jnp.arange(micro_batches), rows))
        metrics = {
            name: value.max(0) if name.endswith("_max") else value.sum(0)
            for name, value in metrics.items()
        }
        return (loss.sum(), metrics), grads

    return run


def _split(name, array, micro_batches):
    """[b ...] -> [micro_batches, b / micro_batches, ...]: consecutive rows stay together."""
    rows = array.shape[0]
    if rows % micro_batches:
        raise ValueError(
            f"batch[{name!r}] has {rows} rows, which do not split into "
            f"micro_batches={micro_batches}; set micro_batches to a divisor of {rows}"
        )
    split = array.reshape(micro_batches, rows // micro_batches, *array.shape[1:])
    return constrain(split, (None, "batch"))  # else the devices would share out the micro-batches


def _move_router_bias(params, load_le, speed):
    if load_le is None:
        raise ValueError(
            f"bias_update_speed={speed} needs experts, and this model reports no expert_load; "
            "set config.base.bias_update_speed to 0"
        )
    layers = params["moe_layers"]
    bias = updated_bias(layers["ffn"]["router_bias"], load_le, speed=speed)
    return params | {"moe_layers": layers | {"ffn": layers["ffn"] | {"router_bias": bias}}}
