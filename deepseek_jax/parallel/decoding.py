"""Where a rollout's arrays live: weights stay, and the few tokens of a step travel.

In training fsdp splits weights, which are gathered before each product. A decoding step multiplies
each weight by a handful of tokens, so no weight is gathered: fsdp, context and tensor split heads,
the width of MLPs and the vocabulary, and each device has the caches of its own slots.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.parallel.context import by_rows
from deepseek_jax.parallel.rules import MESH_AXES, RULES, Entry
from deepseek_jax.parallel.shard import (
    axis_parts,
    constrain,
    current_mesh,
    current_rules,
    placed,
    use_rules,
)

# The logical axes that the mesh axes of the model split
OF_MODEL = "heads kv_heads attention_heads index_heads queries mlp vocab latent out_groups".split()


def decoding_mesh(mesh: Mesh, heads: int) -> Mesh:
    """Make a rollout's mesh from a training mesh: fsdp as large as the heads allow, data the rest.

    Devices stay in the same order, so that arrays move between the two meshes within one program.

    Args:
        mesh: The training mesh.
        heads: num_attention_heads.
    """
    other_size = math.prod(mesh.shape[axis] for axis in _model_axes(mesh, heads) if axis != "fsdp")
    fsdp = math.gcd(mesh.shape["fsdp"], heads // other_size)
    axis_sizes = dict(mesh.shape) | {"fsdp": fsdp}
    # data and fsdp are neighbours among the axes, so their product may be split in another way
    axis_sizes["data"] *= mesh.shape["fsdp"] // fsdp
    devices = mesh.devices.reshape([axis_sizes[axis] for axis in MESH_AXES])
    return Mesh(devices, MESH_AXES, axis_types=mesh.axis_types)


def decoding_rules(mesh: Mesh | AbstractMesh, heads: int, experts: int) -> dict[str, Entry]:
    """Return the table of axes on a decoding_mesh, in place of RULES.

    Args:
        mesh: The decoding_mesh.
        heads: num_attention_heads.
        experts: n_routed_experts, or 1.
    """
    model_axes = _model_axes(mesh, heads)
    batch_axes = tuple(axis for axis in MESH_AXES if axis not in model_axes)
    rules = dict.fromkeys(RULES) | {
        "experts": _expert_axes(mesh, model_axes, experts),
        "batch": batch_axes,
    }
    rules |= dict.fromkeys(OF_MODEL, model_axes)
    # Every device attends for its own slots. The batch's axes come first, so that an array moves between rows
    # and slots by an exchange along the model's axes only
    return rules | {"slots": (*batch_axes, *model_axes)}


def _model_axes(mesh, num_heads):
    """Return the axes that split weights: fsdp, tensor, and context if heads split over it too."""
    num_splits = mesh.shape["context"] * mesh.shape["tensor"]
    return ("fsdp", "context", "tensor") if num_heads % num_splits == 0 else ("fsdp", "tensor")


def _expert_axes(mesh, model_axes, num_experts):
    """Return the axis "expert", and the model's axes that experts also split over.

    A device sends its tokens along all of these axes. Along the model's other axes, devices send
    the same tokens.
    """
    axes: tuple[str, ...] = ("expert",)
    for axis in reversed(model_axes):
        if mesh.shape[axis] > 1 and num_experts % axis_parts(mesh, (*axes, axis)) == 0:
            axes += (axis,)
    return axes


def to_rollout(weight: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Move a weight from its place in training to its place in a rollout.

    Args:
        weight: The weight.
        names: The logical names of its axes.
    """
    if current_mesh() is None:
        return weight
    table = current_rules()
    expert_axes = table["experts"]
    assert isinstance(expert_axes, tuple), "the table is of decoding_rules"
    expert_axis, *more_axes = expert_axes
    if "experts" in names and more_axes:
        # In two steps: if two axes move to two dimensions at once, the compiler gathers the whole weight
        with use_rules(table | {"experts": expert_axis, "embed": tuple(more_axes)}):
            weight = constrain(weight, names)
    return constrain(weight, names)


def join_halves(weight: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Turn a gated MLP's first weight [... 2 f] into [... 2f], the form that its product reads.

    Each device has its part of gate, then its part of up. So the order of columns depends on the
    mesh.

    Args:
        weight: [... 2 f].
        names: The logical names of its axes.
    """
    mesh = current_mesh()

    def join(weight):
        return weight.reshape(*weight.shape[:-2], -1)

    if mesh is None:
        return join(weight)
    *row_entries, _, column_entry = placed(mesh, weight.shape, names)
    return jax.shard_map(
        join,
        in_specs=PartitionSpec(*row_entries, None, column_entry),
        out_specs=PartitionSpec(*row_entries, column_entry),
    )(weight)


@contextlib.contextmanager
def decoding_axes(heads: int, experts: int):
    """Trace with decoding_rules, on the decoding_mesh of `jax.set_mesh`.

    Without a mesh nothing changes.
    """
    mesh = current_mesh()
    if mesh is None:
        yield
        return
    with use_rules(decoding_rules(mesh, heads, experts)):
        yield


# The few queries, keys and latents of a step travel, so that weights stay split by head and caches by slot.
# Each is pinned before and after it travels, or the compiler gathers the weights of a neighbouring product


def heads_to_slots(a: jax.Array) -> jax.Array:
    """Move [b ... h x] from some heads of many slots on a device to all heads of its own slots."""
    return own_slots(_own_heads(a))


def slots_to_heads(a: jax.Array) -> jax.Array:
    """Move [b ... h x] from all heads of a device's own slots to some heads of many slots."""
    return _own_heads(own_slots(a))


def _own_heads(a):
    return constrain(a, ("batch",) + (None,) * (a.ndim - 3) + ("heads", None))


def by_slot(attend: Callable, *arrays: Any) -> jax.Array:
    """Call attend(*arrays) on arrays with a leading axis of slots, each device on its own slots."""
    return by_rows(attend, *arrays, axis="slots")


def own_slots(a: jax.Array) -> jax.Array:
    """Pin an array to the devices of its slots, which its first axis counts, whole or in parts."""
    return constrain(a, ("slots",) + (None,) * (a.ndim - 1))


def own_rows(a: jax.Array) -> jax.Array:
    """Pin an activation [b ...] to the devices that have the batch's rows."""
    return constrain(a, ("batch",) + (None,) * (a.ndim - 1))
