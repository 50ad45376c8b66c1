"""Search for a layout of an experiment's updates: compile a few, print the fastest that fits.

A mesh has to split the updates, and to have room for parameters, moments and gradients (shards.py).
Meshes are ranked by their collectives (ranking.py), for each number of micro-batches anew. The
compiler decides the rest:

1. micro_batches: the smallest number, each at least twice the one before, for which the first mesh
   fits with remat="full";
2. remat: on that mesh, the first of REMAT that fits, starting with the policy that recomputes
   least;
3. mesh: the first N with these micro_batches and remat, N of --search=N.

The result is the fastest of all layouts that fit, by its likely seconds.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.exchange import exchange_of
from deepseek_jax.costs.program import Program
from deepseek_jax.parallel.mesh import MeshSettings, make_mesh, size_name
from deepseek_jax.recipes.experiment_file import set_field
from deepseek_jax.settings import build
from launch.planning.compiled import compile_programs
from launch.planning.layouts import Layout, layout_fields
from launch.planning.ranking import RankedMesh, best_first, rank
from launch.planning.report import WIDTH
from launch.planning.search_table import ComparedLayout, search_table
from launch.planning.shards import meshes
from launch.planning.topology import chosen, planned_mesh, recipes_programs

# From the policy that recomputes least to the policy that saves least
REMAT = ("none", "dots", "selective", "attention", "full")


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search varies.

    Attributes:
        updates: The experiment's updates, on any mesh.
        meshes: [{axis: size}], each for all the devices.
        mesh_of: mesh_of({axis: size}) returns a Mesh of the devices.
        flags: flags(layout) returns the text with which a user sets the layout.
        planned: planned(layout) returns the updates in that layout. It raises ValueError if the
            recipe refuses the layout.
    """

    updates: list[Program]
    meshes: list[dict[str, int]]
    mesh_of: Callable[[dict], Mesh]
    flags: Callable[[Layout], str]
    planned: Callable[[Layout], list[Program]]


def search(config: ConfigDict, topology: str, pattern: str | None, count: int, cache: Path | None):
    """Rank meshes for the experiment's updates, and compile the best.

    Args:
        pattern: The value of --program, or None.
        count: N of --search=N.
        cache: The folder of compiled plans; None for no cache.

    Returns:
        Whether a layout fits.

    Raises:
        ValueError: The config is wrong on any mesh, or --program names no update.
    """
    layout_search, chip = layouts_of(config, topology, pattern)
    return print_search(layout_search, count, chip, cache)


def layouts_of(config: ConfigDict, topology: str, pattern: str | None):
    """Return (the Search of an experiment's updates, the Chip of one device).

    Raises:
        ValueError: See `search`.
    """
    mesh_settings = build(MeshSettings, config.get("mesh", {}), "config.mesh")
    whole_mesh, chip = planned_mesh(
        topology, dict(slices=mesh_settings.slices, pipeline=mesh_settings.pipeline)
    )
    devices = list(whole_mesh.devices.flat)
    # On one device everything splits, and the shapes are the same on every mesh
    updates = _updates(config, make_mesh(devices=devices[:1]), pattern)

    exchange = exchange_of(config.get("model", {}))

    def mesh_of(axis_sizes):
        sizes_by_name = {size_name(axis): n for axis, n in axis_sizes.items()}
        return make_mesh(**sizes_by_name, devices=devices, exchange=exchange)

    def fields_of(layout):
        return layout_fields(updates, layout)

    def planned_updates(layout):
        layout_config = config.copy_and_resolve_references()
        for name, value in fields_of(layout).items():
            set_field(layout_config, name, value)
        return _updates(layout_config, mesh_of(layout.mesh), pattern)

    has_experts = any(update.model.n_routed_experts for update in updates)
    mesh_sizes = meshes(len(devices), has_experts, mesh_settings.slices, mesh_settings.pipeline)

    def flags(layout):
        return flags_of(fields_of(layout))

    return Search(updates, mesh_sizes, mesh_of, flags, planned_updates), chip


def flags_of(fields: dict):
    """Return the command line's flags that set these dotted fields of the config."""
    return " ".join(f"--config.{name}={value}" for name, value in fields.items())


def _updates(config, mesh, pattern):
    programs = chosen(recipes_programs(config, mesh), pattern)
    updates = [program for program in programs if program.model is not None]
    if not updates:
        raise ValueError(f"--search ranks layouts of updates, and --program={pattern} names none")
    return updates


def print_search(search: Search, count: int, chip: Chip, cache: Path | None):
    """Search, and print a table of the layouts that were compiled.

    Args:
        count: N of --search=N.
        cache: The folder of compiled plans; None for no cache.

    Returns:
        Whether one of the layouts fits.
    """
    console = Console(width=WIDTH, soft_wrap=True)
    console.print("ranking meshes by their collectives ...")
    ranked, drop_reasons = rank(search.updates, search.meshes, search.mesh_of, chip)
    split_text = f"{len(ranked):,} of {len(search.meshes):,} meshes split"
    console.print(f"{split_text}, with room for the training state")
    # {the layout's text: its ComparedLayout, or None if the recipe refuses it}
    compared_by_layout: dict[str, ComparedLayout | None] = {}

    def fits(ranked_mesh, micro_batches, remat):
        layout = Layout(ranked_mesh.mesh, micro_batches, remat)
        if str(layout) not in compared_by_layout:
            compared_by_layout[str(layout)] = None
            try:
                programs = search.planned(layout)
            except ValueError as error:
                drop_reasons.append(str(error))
                return None
            console.print(f"compiling {layout} ...")
            compiled = list(compile_programs(programs, cache))
            compared_by_layout[str(layout)] = ComparedLayout(layout, ranked_mesh, compiled)
        comparison = compared_by_layout[str(layout)]
        return None if comparison is None else comparison.fits(chip)

    try_layouts(ranked, count, fits)
    compared_layouts = list(filter(None, compared_by_layout.values()))
    if drop_reasons:
        console.print(
            f"{len(drop_reasons):,} dropped, such as: {drop_reasons[-1]}", highlight=False
        )
    console.print(search_table(compared_layouts, chip))
    fitting_layouts = [candidate for candidate in compared_layouts if candidate.fits(chip)]
    if fitting_layouts:
        best = min(fitting_layouts, key=lambda candidate: candidate.seconds(chip)[1])
        console.print(f"the best of them: {search.flags(best.layout)}")
    elif compared_layouts:
        last_flags = search.flags(compared_layouts[-1].layout)
        console.print(f"None of these fits. What would help is in a plan of the last: {last_flags}")
    else:
        console.print("None was compiled; more devices would help, or a smaller model.")
    return bool(fitting_layouts)


def try_layouts(
    ranked: list[RankedMesh], count: int, fits: Callable[[RankedMesh, int, str], bool | None]
):
    """Call fits(mesh, micro_batches, remat) for the layouts of a search, by this module's rules.

    Args:
        count: How many meshes the last rule tries.
        fits: Returns whether a layout fits, or None if the recipe refuses its mesh. The next mesh
            then takes its place.
    """

    def accepted_meshes(micro_batches, remat):
        best_meshes = best_first(ranked, micro_batches)
        return (
            ranked_mesh
            for ranked_mesh in best_meshes
            if fits(ranked_mesh, micro_batches, remat) is not None
        )

    for micro_batches in _at_least_doubled(
        set().union(*(ranked_mesh.micro_batches for ranked_mesh in ranked))
    ):
        first_mesh = next(accepted_meshes(micro_batches, "full"), None)
        if first_mesh and fits(first_mesh, micro_batches, "full"):
            remat = next(remat for remat in REMAT if fits(first_mesh, micro_batches, remat))
            # To draw a mesh from the iterator is to compile it
            list(itertools.islice(accepted_meshes(micro_batches, remat), count))
            return


def _at_least_doubled(numbers):
    """Yield the smallest number, then in turn the next that is at least twice the last."""
    last = 0
    for number in sorted(numbers):
        if number >= 2 * last:
            last = number
            yield number
