"""Layers in stages along the mesh axis "pipeline"; micro-batches pass from one stage to the next.

All stages run at once, as one program over a leading axis of stages. A collective permute sends
each stage's output to the next stage. The schedule is GPipe's (arXiv:1811.06965): n micro-batches
take n + stages - 1 turns, and each stage idles in stages - 1 of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.parallel.shard import check_splits, current_mesh, partition_spec
from deepseek_jax.trees import PyTree


def pipeline_stages() -> int:
    """Return how many pipeline stages the current mesh has (`jax.set_mesh`); 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["pipeline"]


def pipeline(
    run_stage: Callable, params: PyTree, carried: dict[str, Any], micro_batches: int
) -> tuple[jax.Array, Any]:
    """Run a stack of layers over carried["x"], with the layers split over the pipeline's stages.

    Args:
        run_stage: A function (params, carried) -> (carried, report) that runs some layers, in
            order. It changes x only. report is a tree with a leading axis of those layers, of sums
            over rows.
        params: A tree of arrays with a leading axis of layers, in order.
        carried: A dict of arrays with b rows; one of them is x [b t d].
        micro_batches: The number of parts into which the rows are split.

    Returns:
        x [b t d], and the report of each layer on all rows.

    Raises:
        ValueError: Naming the field, for layers or rows that do not split.
    """
    mesh, stages = current_mesh(), pipeline_stages()
    assert mesh is not None, "a pipeline has stages on a mesh"
    layers, rows = len(jax.tree.leaves(params)[0]), len(carried["x"])
    if layers % stages:
        raise ValueError(
            f"{layers} layers do not split over mesh.pipeline={stages}; "
            f"set mesh.pipeline to a divisor of {layers}"
        )
    if rows % micro_batches:
        raise ValueError(
            f"pipeline_micro_batches={micro_batches} does not split {rows} rows at a time; "
            f"set it to a divisor of {rows}"
        )
    what = f"{rows} rows at a time in pipeline_micro_batches={micro_batches} parts: axis"
    check_splits(mesh, f"{what} batch", rows // micro_batches, "batch")
    check_splits(mesh, f"{what} seq", carried["x"].shape[1], "seq")

    def by_stage(leaf):
        return _along(mesh, leaf.reshape(stages, layers // stages, *leaf.shape[1:]), ())

    # Micro-batch i takes rows i, i + micro_batches, ...: this way each device's rows stay on it
    def by_micro_batch(array):
        dealt = array.reshape(rows // micro_batches, micro_batches, *array.shape[1:])
        return jnp.swapaxes(dealt, 0, 1)

    params = jax.tree.map(by_stage, params)
    inputs = jax.tree.map(by_micro_batch, carried)
    # With this name, sharding constraints within a stage leave the axis of stages split
    everyone = jax.vmap(run_stage, spmd_axis_name="pipeline")
    stage_s = jnp.arange(stages)

    def turn(state, index):
        # After the last micro-batch the first stage repeats it: nothing reads those results
        fresh = jax.tree.map(lambda x: x[jnp.minimum(index, micro_batches - 1)], inputs)
        state = jax.tree.map(lambda s, f: jnp.where(_like(stage_s == 0, s), f, s), state, fresh)
        state = jax.tree.map(lambda s: _along(mesh, s, ("batch", "seq")), state)
        state, report = everyone(params, state)
        # Stage s works on micro-batch index - s, where there is one
        busy_s = (index >= stage_s) & (index < stage_s + micro_batches)
        report = jax.tree.map(lambda x: jnp.where(_like(busy_s, x), x, 0), report)
        # Along the axis that is split over stages, a roll is the collective permute
        passed = jax.tree.map(lambda s: jnp.roll(s, 1, axis=0), state)
        return passed, (state["x"][-1], report)

    # Idle stages work on real rows: on zeros a layer may divide by zero, and the gradients would be NaN
    idle = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (stages, *x.shape[1:])), inputs)
    _, (x_nbtd, report) = jax.lax.scan(turn, idle, jnp.arange(micro_batches + stages - 1))
    # Micro-batch 0 leaves the last stage in turn stages - 1; its outputs before that are idle work
    x_btd = jnp.swapaxes(x_nbtd[stages - 1 :], 0, 1).reshape(carried["x"].shape)
    report = jax.tree.map(lambda x: x.sum(0).reshape(layers, *x.shape[3:]), report)
    return x_btd, report


def _like(flag_s, array):
    return flag_s.reshape(-1, *(1,) * (array.ndim - 1))


def _along(mesh, array, names):
    """Pin axis 0 to the stages and the next axes to their names; the compiler places the rest."""
    spec = ["pipeline", *partition_spec(names)][: array.ndim]
    spec += [PartitionSpec.UNCONSTRAINED] * (array.ndim - len(spec))
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*spec)))
