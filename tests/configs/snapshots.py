"""Where every parameter of a real-size config is placed, and what its programs send, as text files: a change
shows in review. To accept one, write the files anew:

python -m tests.configs.snapshots               # parameters, in seconds
python -m tests.configs.snapshots collectives [FOLDER_OF_PLANS]   # compiles programs for TPUs, for an hour
"""

import importlib
import math
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"
# Config -> the slice that its docstring names
SLICES = {
    "pretrain_v3": "v5p:8x8x16",
    "pretrain_v3:context=32k": "v5p:8x8x16",
    "pretrain_v3:context=128k": "v5p:8x8x16",
    "v32": "v5p:8x8x16",
    "r1_zero": "v5p:8x8x16",
    "r1:stage=reasoning": "v5p:8x8x16",
    "r1:stage=sft": "v5p:8x8x16",
    "r1:stage=helpfulness": "v5p:8x8x16",
    "v3_post_training:stage=rl": "v5p:8x8x16",
    "generate_r1_distill": "v5p:4x4x4",
    "distill_qwen_1_5b": "v5e:4x4",
    "distill_qwen_7b": "v5e:8x8",
    "distill_qwen_14b": "v5p:4x4x4",
    "distill_qwen_32b": "v5p:4x4x8",
    "distill_llama_8b": "v5p:4x4x4",
    "distill_llama_70b": "v5p:4x8x8",
}
# Programs whose collectives are kept: (config, program) -> GiB of a chip
COMPILED = {
    ("distill_qwen_1_5b", "student: update"): 15.75,
    ("distill_qwen_7b", "student: update"): 15.75,
    ("r1_zero", "update"): 95.0,
    ("r1:stage=reasoning", "update"): 95.0,
}


def config_of(name):
    """The ConfigDict of FILE or FILE:ARG."""
    module, _, arg = name.partition(":")
    return importlib.import_module(f"configs.{module}").get_config(arg or None)


def model_blocks(config):
    """{name: block} of the models that a config names."""
    if config.recipe != "distill":
        return {"policy": config.model.to_dict()}
    return {name: start.model.to_dict() for name, start in config.starts.items()}


def placed(name):
    """Lines: each parameter's path, shape, and the mesh axes that split each of its dimensions."""
    from deepseek_jax.checkpoint.tree import abstract_tree, by_path
    from deepseek_jax.models import build_model
    from deepseek_jax.parallel.rules import MESH_AXES

    config = config_of(name)
    mesh = abstract_mesh(config.mesh.to_dict(), chips(SLICES[name]), MESH_AXES)
    lines = [f"mesh: {' '.join(f'{a}={n}' for a, n in mesh.shape.items() if n > 1)}"]
    for model, block in model_blocks(config).items():
        for path, leaf in sorted(by_path(abstract_tree(build_model(block), mesh)).items()):
            spec = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
            axes = ["+".join(e) if isinstance(e, tuple) else e or "-" for e in spec]
            held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4
            shape = "x".join(map(str, leaf.shape))
            lines.append(f"{model} {path} [{shape}] {' '.join(axes)}: {held:,} bytes")
    return lines


def chips(topology):
    """The number of chips of a slice."""
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def abstract_mesh(sizes, devices, names):
    """The AbstractMesh of a config's block `mesh` over so many devices."""
    from jax.sharding import AbstractMesh

    sizes = {"data": -1} | {("slice" if k == "slices" else k): v for k, v in sizes.items()}
    product = math.prod(n for n in sizes.values() if n > 0)
    sizes = {axis: devices // product if n < 0 else n for axis, n in sizes.items()}
    assert math.prod(sizes.values()) == devices, sizes
    return AbstractMesh(tuple(sizes.get(name, 1) for name in names), tuple(names))


def sent(name, program, cache=None):
    """(peak bytes, lines of what one device sends in a program), compiled for the config's slice. cache: see
    costs.compiled.
    """
    from launch import topology

    config = config_of(name)
    mesh, _ = topology.planned_mesh(SLICES[name], config.get("mesh", {}))
    from deepseek_jax.costs.compiled import compile_programs

    programs = topology.chosen(topology.recipes_programs(config, mesh), program)
    *_, (_, compiled) = compile_programs(programs, cache)
    assert compiled.refusal is None, compiled.refusal
    axes = {key: one for key, one in compiled.cost.collectives.items() if one.wire_bytes >= 1e6}
    lines = [
        f"{kind} over {' x '.join(along)}: {one.count:,} times, {one.wire_bytes / 1e9:,.2f} GB"
        for (kind, along), one in sorted(axes.items())
    ]
    return compiled.memory.peak, lines


def file_of(kind, name):
    """The file of a snapshot."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    return FOLDER / kind / f"{safe}.txt"


def write(kind, name, lines):
    """Write a snapshot."""
    path = file_of(kind, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["collectives"]:
        from launch.topology import ENVIRONMENT

        os.environ.update(ENVIRONMENT)
        cache = Path(sys.argv[2]) if sys.argv[2:] else None
        for name, program in COMPILED:
            write("collectives", f"{name} {program}", sent(name, program, cache)[1])
    else:
        for name in SLICES:
            write("parameters", name, placed(name))
