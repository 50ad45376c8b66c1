"""Programs of a search, which launch/plan.py builds itself."""

import copy
from pathlib import Path

from ml_collections import ConfigDict

from deepseek_jax.settings import build
from launch.config_file import set_field
from launch.planning.topology import chosen, planned_mesh, recipes_programs


def search(config: ConfigDict, topology: str, pattern: str | None, count: int, cache: Path | None):
    """Rank the layouts of the experiment's updates and compile the best: -> whether one of them fits.

    Raises ValueError for a config that is wrong on any mesh, and where --program names no update.
    """
    from deepseek_jax.parallel.mesh import MeshSettings, make_mesh, size_name
    from deepseek_jax.recipes.planning import layout_fields
    from launch.planning.search_table import Search, print_search
    from launch.planning.shards import meshes

    given = build(MeshSettings, config.get("mesh", {}), "config.mesh")
    whole, chip = planned_mesh(topology, dict(slices=given.slices, pipeline=given.pipeline))
    devices = list(whole.devices.flat)
    # On one device everything splits: its shapes are those of every mesh
    updates = _updates(config, make_mesh(devices=devices[:1]), pattern)

    def mesh_of(sizes):
        return make_mesh(**{size_name(axis): n for axis, n in sizes.items()}, devices=devices)

    def fields(layout):
        return layout_fields(config, updates, layout)

    def planned(layout):
        own = copy.deepcopy(config)
        for name, value in fields(layout).items():
            set_field(own, name, value)
        return _updates(own, mesh_of(layout.mesh), pattern)

    has_experts = any(update.model.n_routed_experts for update in updates)
    sizes = meshes(len(devices), has_experts, given.slices, given.pipeline)

    def flags(layout):
        return flags_of(fields(layout))

    return print_search(Search(updates, sizes, mesh_of, flags, planned), count, chip, cache)


def flags_of(fields: dict):
    """The command line's flags that set these dotted fields of the config."""
    return " ".join(f"--config.{name}={value}" for name, value in fields.items())


def _updates(config, mesh, pattern):
    programs = chosen(recipes_programs(config, mesh), pattern)
    updates = [program for program in programs if program.model is not None]
    if not updates:
        raise ValueError(f"--search ranks layouts of updates, and --program={pattern} names none")
    return updates
