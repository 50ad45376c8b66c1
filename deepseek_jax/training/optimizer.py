"""The learning rate over time, and AdamW with what it leaves alone."""

import jax
import optax

SCHEDULES = ("constant", "cosine")


def make_schedule(
    learning_rate,
    *,
    schedule="constant",
    warmup_steps=0,
    num_steps,
    final_fraction=0.1,
    path="config.optimizer",
):
    """The learning rate of update i, counted from 0: a function int32[] -> float32[].

    Rises in a straight line from learning_rate / (warmup_steps + 1) at update 0, so that no update
    is wasted, to learning_rate at update warmup_steps. Then "constant" stays, and "cosine" falls by
    half a cosine (arXiv:1608.03983) to final_fraction * learning_rate at update num_steps.
    path: the config block that these stand in, for messages. Raises ValueError for an unknown
    schedule, a rate below zero, or a warm-up that does not end.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"{path}.schedule={schedule!r} is unknown; set it to one of {SCHEDULES}")
    if learning_rate < 0:
        raise ValueError(f"{path}.learning_rate={learning_rate} must not be below 0")
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"{path}.warmup_steps={warmup_steps} must be at least 0 and below num_steps={num_steps}, "
            "all its updates"
        )
    start = learning_rate / (warmup_steps + 1)
    if schedule == "constant":
        return optax.warmup_constant_schedule(start, learning_rate, warmup_steps)
    end = final_fraction * learning_rate
    return optax.warmup_cosine_decay_schedule(start, learning_rate, warmup_steps, num_steps, end)


def make_optimizer(schedule, *, b1, b2, weight_decay, max_grad_norm, eps=1e-8):
    """Clip by global norm, then AdamW (arXiv:1711.05101): an optax transformation.

    Weight decay, multiplied by the learning rate, skips norm scales and biases. Leaves named
    router_bias keep no moments and are never changed here: expert loads move them, in the step. So do
    all leaves below a name that begins with mtp_: no loss here trains multi-token prediction yet, and decay
    alone would wear a checkpoint's weights away.
    """
    trained = optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decays),
    )
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, _labels)


def _decays(params):
    return jax.tree.map_with_path(
        lambda path, _: not (_name(path) == "scale" or _name(path).endswith("bias")), params
    )


def _labels(params):
    return jax.tree.map_with_path(
        lambda path, _: "frozen" if _is_frozen(path) else "trained", params
    )


def _is_frozen(path):
    return _name(path) == "router_bias" or path[0].key.startswith("mtp_")


def _name(path):
    return path[-1].key
