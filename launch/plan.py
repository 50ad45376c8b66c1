"""Compile an experiment's updates for a TPU slice that need not be there: do they fit, and what do they cost?

    python launch/plan.py --config=configs/pretrain_v3.py[:ARG] --topology=v5p:8x8x16
        [--stage=NAME] [--config.FIELD=VALUE ...]

Needs the wheel libtpu and no TPU; the largest models take minutes and a few gigabytes. A mistake is one
message and exit status 2, a program that does not fit is exit status 1.
"""

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

from absl import app, flags

from deepseek_jax import settings
from deepseek_jax.costs.chips import DEVICES, GIB
from deepseek_jax.errors import at
from launch import train

LIBTPU = "libtpu==0.0.42"  # what jax 0.10.2 names as its own
EXAMPLES = "v5e:2x2, v5e:16x16, v5p:2x2x1, v5p:8x8x16, v6e:16x16, tpu7x:2x2x1"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # whatever this machine has is not what is compiled for
    "TPU_SKIP_MDS_QUERY": "1",  # ask no cloud what machine this is,
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # nor wonder: it is the topology that counts
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu locks the whole machine otherwise
}


def define_flags():
    train.define_config()
    flags.DEFINE_string("topology", None, f"The TPU slice, as in {EXAMPLES}.")
    flags.DEFINE_string("stage", None, "The one stage to plan; default all.")
    flags.mark_flags_as_required(["config", "topology"])


def slice_mesh(topology, block):
    """A Mesh as config.mesh says, over the devices of the topology of this name. Raises ValueError."""
    import jax
    from jax.experimental import topologies

    from deepseek_jax.parallel.mesh import make_mesh

    axes = settings.build(train.MeshSettings, block, "config.mesh")
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=axes.slices
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology} is none that libtpu knows: {_first_line(error)}; examples: {EXAMPLES}"
        ) from error
    kind = described.devices[0].device_kind
    if kind not in DEVICES:
        raise ValueError(
            f"--topology={topology} is of {kind}, whose memory and speed are not known here; "
            f"examples: {EXAMPLES}"
        )
    try:
        with at("config.mesh"):
            return make_mesh(**dataclasses.asdict(axes), devices=described.devices)
    except NotImplementedError as error:
        raise ValueError(
            f"config.mesh does not lie on --topology={topology}: {_first_line(error)}"
        ) from error


def planned_updates(config, mesh, stage):
    """The recipe's AbstractUpdates; stage: the name of one, or None for all. Raises ValueError."""
    recipe = sys.modules[train.find_recipe(config.get("recipe")).__module__]
    if not hasattr(recipe, "abstract_updates"):
        raise ValueError(
            f"config.recipe={config.recipe!r} cannot be planned; recipes with an abstract_updates can"
        )
    if stage is not None:
        if stage not in config.stages:
            raise ValueError(f"--stage={stage} is none; {settings.suggest(stage, config.stages)}")
        config = config.copy_and_resolve_references()
        config.stages = {stage: config.stages[stage]}
    return recipe.abstract_updates(config, mesh)


def compiled(update, mesh):
    """(the program for the mesh's devices, its jaxpr); in place of the program the compiler's words where
    their memory does not suffice.
    """
    import jax

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
    """Compile an AbstractUpdate, and print what it takes; -> whether it fits."""
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
    """(Bytes of one device, by what they are for, as text; whether they fit)."""
    found = program.memory_analysis()
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
    """Operations of one device, carried out and needed, and the seconds they take at its peak, as text."""
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


def main(argv):
    del argv  # parse_flags has read it
    if importlib.util.find_spec("libtpu") is None:
        train.fail(f"compiling for a TPU needs the wheel libtpu: pip install {LIBTPU}")
    os.environ.update(ENVIRONMENT)
    config = flags.FLAGS.config
    try:
        mesh = slice_mesh(flags.FLAGS.topology, config.get("mesh", {}))
        updates = planned_updates(config, mesh, flags.FLAGS.stage)
        fits = [report(update, mesh) for update in updates]
    except ValueError as error:
        if not train.raised_here(error):
            raise
        train.fail(error)
    sys.exit(0 if all(fits) else 1)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=train.parse_flags)
