"""Where an update stops being finite: its micro-batch, rows, devices and layers.

Tests: tests/reliability/test_silent_faults.py.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deepseek_jax.parallel.shard import on_device
from deepseek_jax.training.micro_batches import cut
from deepseek_jax.training.state import TrainState

# The end of a message about a layer that is not finite
ADVICE = "lower the learning rate, or look at the data of this step"
# Stacks of layers, in the order of the forward pass; their arrays have a leading axis of layers
STACKS = ("dense_layers", "moe_layers")


def locate(
    loss_fn: Callable, micro_batches: int, state: TrainState, batch: dict, rng: jax.Array, *extra
) -> str:
    """Say in words where the loss or the gradients of an update are not finite.

    It computes the update once more. It names the first micro-batch, one of its rows, and the
    devices that hold this row. Then it names the arrays of the batch that cause it, or else the
    first layer: in the forward pass where the loss is not finite, otherwise in the backward pass.
    It compiles two programs, and takes the memory of an update.

    Args:
        loss_fn: loss_fn(params, batch, rng, *extra) -> (loss, metrics), as in the update.
        state: the TrainState after the update. The update was skipped, so its params are the ones
            before it.
        batch: the update's batch.
        rng: the update's rng.
        extra: further arguments of loss_fn.
    """
    group = broken_group(state.params)
    if group is not None:
        return f"the parameters of {group} are not finite"
    rng = jax.random.fold_in(rng, state.step - 1)
    rows, scalars = cut(jax.tree.map(jnp.asarray, batch), micro_batches)

    @jax.jit
    def measure(params, micro, rng, extra):
        def loss_of(params):
            return loss_fn(state.replace(params=params).model, micro, rng, *extra)[0]

        loss, grads = jax.value_and_grad(loss_of)(params)
        return loss, jax.tree.map_with_path(_is_finite, grads)

    @jax.jit
    def silenced_loss(model, micro, rng, depth, extra):
        return loss_fn(_silence(model, depth), micro, rng, *extra)[0]

    def is_finite(micro):
        loss, grads = measure(state.params, micro | scalars, key, extra)
        return bool(jnp.isfinite(loss)) and not _broken(grads)

    for index in range(micro_batches):
        key = jax.random.fold_in(rng, index) if micro_batches > 1 else rng
        micro = {name: x[index] for name, x in rows.items()}
        if is_finite(micro):
            continue
        loss, grads = measure(state.params, micro | scalars, key, extra)
        if bad_values := _given(micro, is_finite):
            cause = f"{bad_values} of the batch: look at what made them"
        elif bool(jnp.isfinite(loss)):
            gradient_text = (
                f"the gradients of {_last_broken(grads)} are not, the first in the backward pass"
            )
            cause = f"the loss {float(loss):.3g} is finite, and {gradient_text}; {ADVICE}"
        else:
            depths = len(_layers(state.model))

            def fails(depth, micro=micro, key=key):
                loss = silenced_loss(state.model, micro | scalars, key, depth, extra)
                return not bool(jnp.isfinite(loss))

            first_depth = _first(fails, depths)
            names = ["what comes before the layers", *_layers(state.model)]
            cause = f"the loss is {float(loss)}, first in {names[first_depth]}; {ADVICE}"
        where = _row(micro, is_finite)
        return f"micro-batch {index} of {micro_batches}{where}: {cause}"
    return "computed again all is finite, so a device may be faulty"


def _given(micro, is_finite):
    """Name the arrays of a micro-batch with NaN or infinities that make it not finite; else ''.

    Where a mask leaves values out, they may be NaN and do no harm.
    """
    float_names = [name for name, x in micro.items() if jnp.issubdtype(x.dtype, jnp.floating)]
    finite_masks = {name: jnp.isfinite(micro[name]) for name in float_names}
    bad_names = [name for name in float_names if not finite_masks[name].all()]
    mended_arrays = {name: jnp.where(finite_masks[name], micro[name], 0) for name in bad_names}
    if not bad_names or not is_finite(micro | mended_arrays):
        return ""
    single_causes = [
        name
        for name in bad_names
        if not is_finite(micro | {n: x for n, x in mended_arrays.items() if n != name})
    ]
    return f"values that are not finite in {', '.join(single_causes or bad_names)}"


def _row(micro, is_finite):
    """Name a row that makes the micro-batch not finite by itself, and its devices; else ''."""
    # Arrays may have different numbers of rows: one for each prompt, or one for each completion
    units = math.gcd(*(len(x) for x in micro.values()))

    def only_units(low, high):
        def take_rows(x):
            size = len(x) // units
            unit_indices = jnp.arange(units) % (high - low) + low
            row_indices = (unit_indices[:, None] * size + jnp.arange(size)).reshape(-1)
            return jax.device_put(x[row_indices], x.sharding)

        return {name: take_rows(x) for name, x in micro.items()}

    low, high = 0, units
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if not is_finite(only_units(low, middle)) else (middle, high)
    if units > 1 and is_finite(only_units(low, high)):
        return ""
    devices = set()
    for x in micro.values():
        size = len(x) // units
        for device, (row_slice, *_) in x.sharding.devices_indices_map(x.shape).items():
            start, stop, _ = row_slice.indices(len(x))
            if start < (low + 1) * size and stop > low * size:
                devices.add(str(device))
    return f", row {low} on {', '.join(sorted(devices))}"


def _first(fails, most):
    """Find the smallest depth in 0..most that fails, by bisection.

    Every depth above it fails too, and `most` is known to fail.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return low


def keys_of(path):
    """Return the names in a path in a tree of dicts."""
    return [key.key for key in path if isinstance(getattr(key, "key", None), str)]


def _layer_of(path):
    """Return a leaf's stack of layers or its multi-token prediction module; else None."""
    for key in keys_of(path):
        if key in STACKS or key.startswith("mtp_"):
            return key
    return None


def _layers(model):
    """Return the names of all layers, in the order of the forward pass."""
    layer_counts: dict[str, int] = {}
    other_names = set()
    for path, leaf in jax.tree.leaves_with_path(model):
        group = _layer_of(path)
        if group in STACKS:
            layer_counts[group] = len(leaf)
        elif group is not None:
            other_names.add(group)
    names = [f"layer {i} of {group}" for group in STACKS for i in range(layer_counts.get(group, 0))]
    return names + sorted(other_names)


def _silence(model, depth):
    """Set all weights to 0 in a model's layers from number `depth` on.

    Such layers add 0 to the residual stream, whatever they read. So a value that is not finite must
    come from an earlier layer.
    """
    names = _layers(model)

    def mask_leaf(path, leaf):
        group = _layer_of(path)
        if group is None:
            return leaf
        if group not in STACKS:
            return jnp.where(names.index(group) < depth, leaf, jnp.zeros_like(leaf))
        depths = jnp.arange(len(leaf)) + names.index(f"layer 0 of {group}")
        return jnp.where(
            (depths < depth).reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf)
        )

    return jax.tree.map_with_path(mask_leaf, model)


def layer_axes(path, leaf):
    """Return a leaf's axes within a layer if it stacks layers; None, all axes, otherwise."""
    return tuple(range(1, leaf.ndim)) if _layer_of(path) in STACKS else None


def _is_finite(path, leaf):
    """Return whether a leaf is finite: bool[l] for stacked layers, else bool[]."""
    return jnp.isfinite(leaf).all(layer_axes(path, leaf))


@jax.jit
def _all_finite(params):
    return jax.tree.map_with_path(_is_finite, on_device(params))


def _broken(flags):
    """Name everything that is not finite by its flags, in the order of the forward pass."""
    flags_by_stack: dict[str, np.ndarray] = {}
    other_names = []
    for path, flag in jax.tree.leaves_with_path(read_flags(flags)):
        group = _layer_of(path)
        if group in STACKS:
            flags_by_stack[group] = flags_by_stack.get(group, True) & flag
        elif not flag:
            other_names.append(group or ".".join(keys_of(path)))
    layer_names = [
        f"layer {i} of {group}"
        for group in STACKS
        for i, flag in enumerate(flags_by_stack.get(group, ()))
        if not flag
    ]
    first_names = [name for name in other_names if name.endswith("embedding")]
    return first_names + layer_names + sorted(set(other_names) - set(first_names))


def read_flags(flags):
    """Copy flags to the host; with several processes, each has only a part of them before."""
    if jax.process_count() == 1:
        return jax.device_get(flags)
    return multihost_utils.process_allgather(flags, tiled=True)


def broken_group(params):
    """Name the first group of parameters, in the order of the forward pass, that is not finite.

    A group is a layer, a multi-token prediction module, or a parameter outside of them. None where
    all are finite.
    """
    return next(iter(_broken(_all_finite(params))), None)


def _last_broken(flags):
    return _broken(flags)[-1]
