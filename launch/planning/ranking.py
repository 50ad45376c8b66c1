"""Rank the layouts of an experiment's updates by estimates, so that only a few have to be compiled."""

import dataclasses
import math
from collections.abc import Callable

from jax.sharding import AbstractMesh, Mesh

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.layouts import Layout
from deepseek_jax.costs.program import Program
from launch.planning.estimate import peak_bytes, step_seconds
from launch.planning.shards import REMAT, micro_batches, shards


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A layout with its estimates: the peak bytes of one device, the largest of all updates, and the seconds
    of one call of each.
    """

    layout: Layout
    peak: float
    seconds: float

    def order(self, chip: Chip):
        """The key of a ranking: what fits, the fastest first, then the rest by memory."""
        excess = max(self.peak - chip.hbm_bytes, 0.0)
        return excess, self.seconds, self.layout.micro_batches, self.peak


def rank(updates: list[Program], meshes: list[dict], mesh_of: Callable[[dict], Mesh], chip: Chip):
    """([Ranked], best first, [why a mesh was dropped]).

    updates: of any mesh: their shapes and axes alone are read. meshes: as of layouts.meshes. mesh_of({axis:
    size}) is the Mesh over the devices.
    """
    ranked, dropped = [], []
    for sizes in meshes:
        try:
            ranked += _of_mesh(updates, sizes, mesh_of, chip)
        except ValueError as error:
            dropped.append(str(error))
    return sorted(ranked, key=lambda one: one.order(chip)), dropped


def _of_mesh(updates, sizes, mesh_of, chip):
    """The Ranked of one mesh. Raises ValueError where an update does not split over it."""
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    counts = set.intersection(*(set(micro_batches(update, abstract)) for update in updates))
    held = [shards(update, abstract) for update in updates]
    smallest = max(one.arguments for one in held)
    if smallest > chip.hbm_bytes:
        raise ValueError(f"{_named(sizes)}: the arguments alone exceed a device's memory")
    mesh, found = mesh_of(sizes), []
    for number in sorted(counts):
        for remat in REMAT:
            layout = Layout(sizes, number, remat)
            pairs = list(zip(updates, held, strict=True))
            peak = max(peak_bytes(update, one, layout) for update, one in pairs)
            seconds = math.fsum(step_seconds(u, one, layout, chip, mesh) for u, one in pairs)
            found.append(Ranked(layout, peak, seconds))
    return found


def _named(sizes):
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
