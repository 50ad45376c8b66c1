"""Compile an experiment's updates for a TPU slice, on any machine: do they fit, and what do they cost?

    python launch/plan.py --config=configs/pretrain_v3.py[:ARG] --topology=v5p:8x8x16
        [--stage=NAME] [--config.FIELD=VALUE ...]

It needs the wheel libtpu and no TPU. The largest models take minutes and a few gigabytes. A mistake is one
message and exit status 2; a program that does not fit is exit status 1.
"""

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

from deepseek_jax.costs.chips import DEVICES, GIB
from deepseek_jax.errors import at, suggest
from deepseek_jax.settings import build
from launch import common

# The version that jax 0.10.2 names as its own
LIBTPU = "libtpu==0.0.42"
EXAMPLES = "v5e:2x2, v5e:16x16, v5p:2x2x1, v5p:8x8x16, v6e:16x16, tpu7x:2x2x1"
# Set before jax is imported
ENVIRONMENT = {
    # The program is compiled for the topology, not for this machine's devices
    "JAX_PLATFORMS": "cpu",
    # Without these, libtpu queries the cloud for the kind of this machine, and waits for an answer
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # libtpu locks the machine: without this, a second process that loads it fails
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def define_flags():
    common.define_config()
    flags.DEFINE_string("topology", None, f"The TPU slice, as in {EXAMPLES}.", required=True)
    flags.DEFINE_string("stage", None, "The one stage to plan; default all.")


def slice_mesh(topology: str, block):
    """The Mesh of config.mesh over the devices of a named topology. Raises ValueError."""
    import jax
    from jax.experimental import topologies

    from deepseek_jax.parallel.mesh import MeshSettings, make_mesh

    axes = build(MeshSettings, block, "config.mesh")
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=axes.slices
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology} is unknown to libtpu: {_first_line(error)}; examples: {EXAMPLES}"
        ) from error
    kind = described.devices[0].device_kind
    if kind not in DEVICES:
        raise ValueError(
            f"--topology={topology} has {kind} chips, whose memory and speed are not in costs/chips.py; "
            f"examples: {EXAMPLES}"
        )
    try:
        with at("config.mesh"):
            return make_mesh(**dataclasses.asdict(axes), devices=described.devices)
    except NotImplementedError as error:
        raise ValueError(
            f"config.mesh does not fit on --topology={topology}: {_first_line(error)}"
        ) from error


def planned_updates(config, mesh, stage: str | None):
    """The recipe's AbstractUpdates. stage: the name of one, or None for all. Raises ValueError."""
    recipe = common.find_recipe(config.get("recipe"))
    if not hasattr(recipe, "abstract_updates"):
        raise ValueError(
            f"config.recipe={config.recipe!r} cannot be planned; only a recipe with abstract_updates can"
        )
    if stage is not None:
        if stage not in config.stages:
            message = f"--stage={stage} is not in config.stages; {suggest(stage, config.stages)}"
            raise ValueError(message)
        config = config.copy_and_resolve_references()
        config.stages = {stage: config.stages[stage]}
    return recipe.abstract_updates(build(recipe.SETTINGS, config, "config"), mesh)


def compiled(update, mesh):
    """(the program compiled for the mesh's devices, its jaxpr).

    Where the devices have too little memory, the compiler's message, a str, takes the program's place.
    """
    import jax

    # A key where the step counter is: on every device of the slice
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=update.state.step.sharding)
    with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
        traced = update.step.trace(update.state, update.batch, rng)
        lowered = traced.lower(lowering_platforms=("tpu",))
        try:
            return lowered.compile(), traced.jaxpr
        except jax.errors.JaxRuntimeError as error:
            if "out of memory on HBM" not in str(error):
                raise
            return _first_line(error), traced.jaxpr


def report(update, mesh):
    """Compile an AbstractUpdate and print its memory and operations: -> whether it fits."""
    from rich.console import Console
    from rich.table import Table

    program, jaxpr = compiled(update, mesh)
    device = mesh.devices.flat[0]
    chip, (rows, length) = DEVICES[device.device_kind], update.batch["tokens"].shape
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    table = Table("for each device, an update", "", title=update.name)
    table.add_row("devices", f"{mesh.size} x {device.device_kind} {axes}")
    table.add_row("rows x tokens, of all", f"{rows:,} x {length:,}")
    if isinstance(program, str):
        lines, fits = {"does not fit": program}, False
    else:
        lines, fits = memory(program, chip)
    lines |= operations(update, jaxpr, mesh.size, chip)
    for name, value in lines.items():
        table.add_row(name, value)
    Console().print(table)
    return fits


def memory(program, chip):
    """({use of one device's memory: text}, whether all of it fits). program: compiled; chip: of DEVICES."""
    found = program.memory_analysis()
    # An output that aliases an argument takes no memory of its own
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    total = found.argument_size_in_bytes + new + found.temp_size_in_bytes
    numbers = {
        "state and batch": found.argument_size_in_bytes,
        "of these, updated in place": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "all together": total,
        "alive at once, at most": found.peak_memory_in_bytes,
    }
    texts = {name: f"{size:,} B = {size / GIB:.2f} GiB" for name, size in numbers.items()}
    fits = total <= chip.hbm_bytes
    share = f"{total / chip.hbm_bytes:.1%} of {chip.hbm_bytes / GIB:.0f} GiB"
    return texts | {"fits" if fits else "does not fit": share}, fits


def operations(update, jaxpr, devices, chip):
    """{name: text}: operations that one device executes, those that the model needs, seconds at its peak."""
    from deepseek_jax.costs.flops import matmul_flops, useful_flops

    tokens, length = update.batch["tokens"].size, update.batch["tokens"].shape[1]
    executed = matmul_flops(jaxpr) / devices
    each = useful_flops(update.model, length, trains_mtp="mtp_weight" in update.batch)
    useful = tokens * each / devices
    return {
        "FLOPs of matrix products": f"{executed:.4e}",
        "FLOPs that the model needs": f"{useful:.4e} = {each / 1e9:.1f}e9 a token",
        "needed / carried out": f"{useful / executed:.1%}",
        "seconds, at least": f"{executed / chip.flops_per_second:.3g} at the bfloat16 peak",
    }


def _first_line(error):
    return str(error).splitlines()[0]


def main(config):
    if importlib.util.find_spec("libtpu") is None:
        common.fail(f"compiling for a TPU needs the wheel libtpu: pip install {LIBTPU}")
    os.environ.update(ENVIRONMENT)
    with common.one_message():
        mesh = slice_mesh(flags.FLAGS.topology, config.get("mesh", {}))
        updates = planned_updates(config, mesh, flags.FLAGS.stage)
        fits = [report(update, mesh) for update in updates]
    sys.exit(0 if all(fits) else 1)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=common.parse_config)
