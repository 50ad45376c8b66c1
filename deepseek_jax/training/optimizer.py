"""AdamW, with what it leaves alone and what its moments are stored in."""

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.models import decays


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
    moment_dtype: "bfloat16" stores both moments so (arXiv:2412.19437, section 3.3.3), see scale_by_adam.
    """
    trained = optax.chain(
        clip_by_global_norm(max_grad_norm),
        scale_by_adam(b1, b2, eps, moment_dtype),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule),
    )

    def labels(params):
        return jax.tree.map_with_path(
            lambda path, _: "frozen" if _is_frozen(path, trains_mtp) else "trained", params
        )

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def clip_by_global_norm(max_norm):
    """Scale all gradients down to this norm together (arXiv:1211.5063): an optax transformation.

    optax's own divides each gradient, which XLA does not fuse into what follows: one more copy of all
    of them. Here one factor multiplies them, 1 exactly up to max_norm.
    """

    def update(grads, state, params=None):
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(b1, b2, eps, moment_dtype):
    """Adam's direction (arXiv:1412.6980), as optax's, with both moments stored in moment_dtype; its mu_dtype
    is of the mean alone.

    The arithmetic is float32. Each moment is rounded to nearest once an update, and the direction is of
    the moments as stored: then nothing reads the old ones, and the new take their place in memory.
    """

    def init(params):
        mean, square = (optax.tree.zeros_like(params, dtype=moment_dtype) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def moment(decay, old, sample):
        return ((1 - decay) * sample + decay * old.astype(jnp.float32)).astype(moment_dtype)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda old, g: moment(b1, old, g), state.mu, grads)
        square = jax.tree.map(lambda old, g: moment(b2, old, g * g), state.nu, grads)

        def direction(m, v):
            m = m.astype(jnp.float32) / (1 - b1**count)
            return m / (jnp.sqrt(v.astype(jnp.float32) / (1 - b2**count)) + eps)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _is_frozen(path, trains_mtp):
    return _name(path) == "router_bias" or (path[0].key.startswith("mtp_") and not trains_mtp)


def _name(path):
    return path[-1].key
