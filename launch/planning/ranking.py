"""Rank the meshes of a search by the cost of their collectives, so that only a few are compiled.

The cost counts the gathers of weights with the sums of their gradients, and the exchanges of
activations between devices that share rows, heads or experts. It leaves out exchanges that remat
repeats, and sums over slices.
"""

import dataclasses
import math
from collections.abc import Callable

from jax.sharding import AbstractMesh, Mesh

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import Program
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4.config import V4Config
from launch.planning.roofline import collective_seconds
from launch.planning.shards import Shards, compute_bytes, micro_batches, shards


@dataclasses.dataclass(frozen=True)
class RankedMesh:
    """A mesh over which the updates split, with room for their state.

    Attributes:
        mesh: {axis: size}.
        micro_batches: The numbers of micro-batches into which the rows of every update split.
        state: Shards.state of the update that holds most.
        gathers: Seconds of the gathers in one call of each update with one micro-batch, if no other
            work hides them. Each micro-batch repeats them.
        exchanges: Seconds of the exchanges in one call of each update, if no other work hides them.
    """

    mesh: dict[str, int]
    micro_batches: set[int]
    state: int
    gathers: float
    exchanges: float

    def collectives(self, micro_batches: int):
        """Return the seconds of all collectives with this number of micro-batches."""
        return micro_batches * self.gathers + self.exchanges


def rank(updates: list[Program], meshes: list[dict], mesh_of: Callable[[dict], Mesh], chip: Chip):
    """Estimate the collectives of each mesh that the updates fit on.

    Args:
        updates: On any mesh: only their shapes and axes are read.
        meshes: As shards.meshes returns them.
        mesh_of: mesh_of({axis: size}) returns the Mesh over the devices.

    Returns:
        ([RankedMesh], [why a mesh was dropped]), both in the order of `meshes`.
    """
    ranked, drop_reasons = [], []
    for axis_sizes in meshes:
        try:
            ranked.append(_ranked(updates, axis_sizes, mesh_of, chip))
        except ValueError as error:
            drop_reasons.append(str(error))
    return ranked, drop_reasons


def best_first(ranked: list[RankedMesh], micro_batches: int):
    """Return the meshes that split a batch into `micro_batches`, the cheapest collectives first."""
    candidates = [candidate for candidate in ranked if micro_batches in candidate.micro_batches]
    return sorted(
        candidates, key=lambda candidate: (candidate.collectives(micro_batches), candidate.state)
    )


def _ranked(updates, axis_sizes, mesh_of, chip):
    """Return the RankedMesh of one mesh.

    Raises:
        ValueError: An update does not split over the mesh, or has no room for its state.
    """
    abstract_mesh = AbstractMesh(tuple(axis_sizes.values()), tuple(axis_sizes))
    micro_batch_counts = set.intersection(
        *(set(micro_batches(update, abstract_mesh)) for update in updates)
    )
    all_shards = [shards(update, abstract_mesh) for update in updates]
    state = max(update_shards.state for update_shards in all_shards)
    if state > chip.hbm_bytes:
        raise ValueError(
            f"{_named(axis_sizes)}: the training state alone takes {state / GIB:.2f} GiB, of "
            f"{chip.hbm_bytes / GIB:.2f} GiB of a device"
        )
    mesh = mesh_of(axis_sizes)
    gathers = math.fsum(
        _gather_seconds(update_shards, axis_sizes, chip, mesh) for update_shards in all_shards
    )
    exchanges = math.fsum(_exchange_seconds(update, axis_sizes, chip, mesh) for update in updates)
    return RankedMesh(axis_sizes, micro_batch_counts, state, gathers, exchanges)


def _gather_seconds(update_shards: Shards, axis_sizes: dict, chip: Chip, mesh: Mesh):
    """Return the seconds of the gathers in one micro-batch."""
    seconds = 0.0
    for axes, whole_bytes in update_shards.gathered.items():
        num_shards = math.prod(axis_sizes[axis] for axis in axes)
        # Gathers in the forward and the backward pass, and as many bytes for the gradients
        wire_bytes = 3 * whole_bytes * (num_shards - 1) / num_shards
        seconds += collective_seconds("all-gather", axes, wire_bytes, chip, mesh)
    return seconds


def _exchange_seconds(program: Program, axis_sizes: dict, chip: Chip, mesh: Mesh):
    """Return the seconds of the exchanges of an update, in all its micro-batches."""
    config = program.model
    assert config is not None
    tokens = program.tokens / math.prod(
        axis_sizes[axis] for axis in ("slice", "data", "fsdp", "expert", "context")
    )
    # Forward and backward
    bytes_per_number = 2 * tokens * compute_bytes(program) / axis_sizes["pipeline"]
    routed_width = config.num_moe_layers * (config.num_experts_per_tok or 0) * config.hidden_size
    # Numbers of a token: rows to their experts and back; rows of heads, and their outputs; two sums
    # in each layer, both there and back
    widths = {
        ("ragged-all-to-all", "expert"): 2 * routed_width,
        ("all-to-all", "context"): config.num_hidden_layers * _heads(config) / axis_sizes["tensor"],
        ("all-reduce", "tensor"): 2 * 2 * config.num_hidden_layers * config.hidden_size,
    }
    seconds = 0.0
    for (kind, axis), width in widths.items():
        if axis_sizes[axis] > 1:
            wire_bytes = bytes_per_number * width * (axis_sizes[axis] - 1) / axis_sizes[axis]
            seconds += collective_seconds(kind, (axis,), wire_bytes, chip, mesh)
    return seconds


def _heads(config: Network):
    """Count a token's numbers in the queries, keys, values and outputs of a layer's heads."""
    if isinstance(config, V4Config):
        # Queries stay where they are, and one vector is key and value
        return config.head_dim
    if config.is_mla:
        latent = config.latent
        key_width = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        return 2 * config.num_attention_heads * (key_width + latent.v_head_dim)
    grouped = config.grouped
    return 2 * (config.num_attention_heads + grouped.num_key_value_heads) * grouped.head_dim


def _named(axis_sizes):
    return (
        " ".join(f"{axis}={size}" for axis, size in axis_sizes.items() if size > 1) or "one device"
    )
