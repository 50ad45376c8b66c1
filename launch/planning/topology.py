"""The devices of a named topology, which need not exist, and an experiment's programs on them.

Tests: tests/launch/planning/test_by_shapes.py, tests/launch/sweeps/test_prune.py,
tests/launch/test_plan.py.
"""

import dataclasses
import fnmatch
import importlib.metadata
import importlib.util
from types import MappingProxyType

from deepseek_jax.costs.chips import DEVICES, GPUS
from deepseek_jax.errors import CannotPlan, at, suggest
from deepseek_jax.recipes.environment import NO_TPU
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.settings import build

EXAMPLES = (
    "v5e:1x1, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:8x8x16, v6e:16x16, tpu7x:2x2x1, h100:64, h200:8"
)
# Environment variables of a plan, to set before jax is imported
ENVIRONMENT = {
    # The program is compiled for the topology, not for this machine's devices
    "JAX_PLATFORMS": "cpu",
    # Without these, libtpu queries the cloud for the kind of this machine, and waits for an answer
    **NO_TPU,
    # libtpu locks the machine: without this, a second process that loads it fails
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def on_gpus(topology: str):
    """Return whether a topology has GPUs, so that its plan needs no compiler.

    Raises:
        ValueError: It has TPUs, and libtpu is missing.
    """
    if topology.partition(":")[0] in GPUS:
        return True
    if importlib.util.find_spec("libtpu") is None:
        # jax is not imported yet, because ENVIRONMENT has to be set first
        jax = importlib.metadata.version("jax")
        raise ValueError(f'compiling for a TPU needs libtpu: pip install "jax[tpu]=={jax}"')
    return False


def planned_mesh(topology: str, block, model=MappingProxyType({})):
    """Return (the Mesh of config.mesh over a named topology, the Chip of one device).

    Args:
        topology: The name, see EXAMPLES.
        block: config.mesh.
        model: config.model.

    Raises:
        ValueError: The topology is not known, or the mesh does not fit on it.
    """
    from deepseek_jax.costs.exchange import exchange_of
    from deepseek_jax.parallel.mesh import MeshSettings, make_mesh

    axes = build(MeshSettings, block, "config.mesh")
    name, _, size = topology.partition(":")
    if name in GPUS:
        devices, chip = _stand_ins(topology, size), GPUS[name]
    else:
        devices = _slice(topology, axes.slices)
        chip = DEVICES[devices[0].device_kind]
    exchange = exchange_of(model)
    with at("config.mesh"):
        return make_mesh(**dataclasses.asdict(axes), devices=devices, exchange=exchange), chip


def _slice(topology, slices):
    import jax
    from jax.experimental import topologies

    # A single chip has a host of its own
    one = dict(chips_per_host_bounds=(1, 1, 1)) if topology.endswith(":1x1") else {}
    try:
        devices: list[jax.Device] = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **one
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology} is unknown to libtpu: {_first_line(error)}; examples: {EXAMPLES}"
        ) from error
    kind = devices[0].device_kind
    if kind not in DEVICES:
        raise ValueError(
            f"--topology={topology} has {kind} chips, whose memory and speed are not in costs/chips.py; "
            f"examples: {EXAMPLES}"
        )
    return devices


def _stand_ins(topology, size):
    """Return `size` CPU devices in place of GPUs, for work that needs only shapes and shardings."""
    import jax

    if not size.isdigit() or int(size) < 1:
        raise ValueError(f"--topology={topology} needs a number of GPUs; examples: {EXAMPLES}")
    jax.config.update("jax_num_cpu_devices", int(size))
    return jax.devices("cpu")


def recipes_programs(config, mesh):
    """Return the list of costs.program.Program of the config's recipe.

    Raises:
        ValueError: The config is wrong.
        CannotPlan: The recipe has no programs.
    """
    from deepseek_jax.recipes import driver

    recipe = find_recipe(config.get("recipe"))
    programs = driver.plan(recipe, build(recipe.SETTINGS, config, "config"), mesh)
    if not programs:
        raise CannotPlan(
            f"config.recipe={config.recipe!r} lists no programs, and runs without a plan"
        )
    return programs


def chosen(programs, pattern: str | None):
    """Return the programs that match --program, and the programs that they depend on.

    A program with results that a match needs is compiled too. A program with results that are only
    in memory next to a match gets by_shapes=True, and is not compiled.

    Args:
        pattern: A pattern of names as for fnmatch; None for all programs.

    Raises:
        ValueError: No name matches.
    """
    if pattern is None:
        return programs
    by_name = {program.name: program for program in programs}
    wanted = {name for name in by_name if fnmatch.fnmatchcase(name, pattern)}
    if not wanted:
        raise ValueError(f"--program={pattern} is no program of it; {suggest(pattern, by_name)}")
    beside = set()
    # In reverse: a program comes after all programs that it needs
    for program in reversed(programs):
        if program.name in wanted:
            wanted.update(program.needs)
            beside.update(program.waiting)
        elif program.name in beside:
            beside.update(program.needs)
    return [
        dataclasses.replace(program, by_shapes=program.name not in wanted)
        for program in programs
        if program.name in wanted | beside
    ]


def _first_line(error):
    return str(error).splitlines()[0]
