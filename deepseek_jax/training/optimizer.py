"""AdamW, with what it leaves alone and what its moments are stored in."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
    schedule,
    *,
    b1,
    b2,
    weight_decay,
    max_grad_norm,
    trains_mtp=False,
    moment_dtype="float32",
    eps=1e-8,
):
    """Clip by global norm, then AdamW (arXiv:1711.05101): an optax transformation.

    schedule: the learning rate by update. Weight decay, multiplied by it, skips norm scales and
    biases. Leaves named router_bias keep no moments and are never changed here: expert loads move
    them, in the step. So do, unless trains_mtp, all leaves below a name that begins with mtp_: where
    no loss trains multi-token prediction, decay alone would wear a checkpoint's weights away.
    moment_dtype: "bfloat16" stores both moments so (arXiv:2412.19437, section 3.3.3), each rounded to
    nearest once an update; the arithmetic and the parameters are float32, and the update itself is
    made of the moments before they are rounded.
    """
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decays)
    trained = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), _moments_stored_in(moment_dtype, adamw)
    )

    def labels(params):
        return jax.tree.map_with_path(
            lambda path, _: "frozen" if _is_frozen(path, trains_mtp) else "trained", params
        )

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _moments_stored_in(dtype, tx):
    """tx, which sees float32, with the floats of its state in dtype. optax's mu_dtype is of one moment."""

    def init(params):
        return _cast(tx.init(params), dtype)

    def update(grads, state, params):
        updates, state = tx.update(grads, _cast(state, jnp.float32), params)
        return updates, _cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _cast(state, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
    )


def _decays(params):
    return jax.tree.map_with_path(
        lambda path, _: not (_name(path) == "scale" or _name(path).endswith("bias")), params
    )


def _is_frozen(path, trains_mtp):
    return _name(path) == "router_bias" or (path[0].key.startswith("mtp_") and not trains_mtp)


def _name(path):
    return path[-1].key
