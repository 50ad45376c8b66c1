"""Micro-batches: parts of a batch that are computed one after another, with sums of gradients.

Tests: tests/training/test_update.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.shard import constrain


def accumulated(gradients, micro_batches):
    """Build a function like `gradients` that computes one micro-batch after another.

    Losses and metrics are added up (for names that end in _max, the largest counts). Gradients are
    added up in float32.

    Args:
        gradients: gradients(params, batch, rng) -> ((loss, metrics), gradients).
    """

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


def over_micro_batches(function: Callable[[dict], Any], batch: dict, micro_batches: int) -> Any:
    """Apply a function to each micro-batch in turn, and stack its results.

    Args:
        function: function(micro-batch) -> a tree of arrays. Micro-batches are cut as for an update.
    """
    rows, scalars = cut(batch, micro_batches)
    return jax.lax.map(lambda micro: function(micro | scalars), rows)


def cut(batch, micro_batches: int):
    """Cut a batch into micro-batches.

    Returns:
        (arrays, scalars), dicts by name. Arrays are [micro_batches, b / micro_batches, ...].

    Raises:
        ValueError: for an array with rows that do not split into micro_batches.
    """
    rows = {name: _split(name, x, micro_batches) for name, x in batch.items() if x.ndim}
    return rows, {name: x for name, x in batch.items() if not x.ndim}


def _split(name, array, micro_batches):
    """Split [b ...] into [micro_batches, b / micro_batches, ...]; adjacent rows stay together."""
    rows = array.shape[0]
    if rows % micro_batches:
        raise ValueError(
            f"batch[{name!r}] has {rows} rows, which do not split into "
            f"micro_batches={micro_batches}; set micro_batches to a divisor of {rows}"
        )
    split = array.reshape(micro_batches, rows // micro_batches, *array.shape[1:])
    # Otherwise XLA could divide the micro-batches between the devices, and not the rows of each
    # micro-batch
    return constrain(split, (None, "batch"))
