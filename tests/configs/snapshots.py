"""Where every parameter of a real-size config is placed, and what its programs send, as text files: a change
shows in review. To accept one, write the files anew:

python -m tests.configs.snapshots               # parameters, in seconds
python -m tests.configs.snapshots collectives [FOLDER_OF_PLANS]   # compiles programs for TPUs, for two hours
"""

import importlib
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.recipes.experiment_file import set_field

FOLDER = Path(__file__).parent / "snapshots"
TOOLS = "tools_smollm2:model=r1_distill_qwen_1_5b"
FEWER_SLOTS = "r1:stage=reasoning of 2,048 slots"
# Published configs with other fields
VARIED = {FEWER_SLOTS: ("r1:stage=reasoning", {"rollout.slots": 2048})}
# Config -> the slice that its docstring names
SLICES = {
    "pretrain_v3": "v5p:8x8x16",
    "pretrain_v3:context=32k": "v5p:8x8x16",
    "pretrain_v3:context=128k": "v5p:8x8x16",
    "v32": "v5p:8x8x16",
    "v32_grpo": "v5p:8x8x8",
    "v4_flash": "v5p:8x8x8",
    "v4_flash:recipe=grpo": "v5p:8x8x8",
    "r1_zero": "v5p:8x8x16",
    "r1_own": "v5e:2x4",
    "r1:stage=reasoning": "v5p:8x8x16",
    "r1:stage=sft": "v5p:8x8x16",
    "r1:stage=helpfulness": "v5p:8x8x16",
    "v3_post_training:stage=rl": "v5p:8x8x16",
    TOOLS: "v5e:2x2",
    "generate_r1_distill": "v5p:4x4x4",
    "distill_qwen_1_5b": "v5e:4x4",
    "distill_qwen_7b": "v5e:8x8",
    "distill_qwen_14b": "v5p:4x4x4",
    "distill_qwen_32b": "v5p:4x4x8",
    "distill_llama_8b": "v5p:4x4x4",
    "distill_llama_70b": "v5p:4x8x8",
}


class Figures(NamedTuple):
    """What one chip holds and does: GiB at the peak; in a call, or for a token where it decodes, the MFU at
    least seconds, GB sent, GB of memory traffic, how many operations and collectives run, and the likely
    tokens a second of all chips. As limits of a program: MFU and rate are the least, the others the most.
    """

    gib: float
    mfu: float = 0.0
    sent_gb: float = math.inf
    traffic_gb: float = math.inf
    operations: float = math.inf
    collectives: float = math.inf
    rate: float = 0.0


V5E, V5P = 15.75, 95.0
# Programs whose collectives are kept, with their limits
COMPILED = {
    ("distill_qwen_1_5b", "student: update"): Figures(V5E, mfu=0.55),
    ("distill_qwen_7b", "student: update"): Figures(V5E, mfu=0.6),
    ("distill_qwen_14b", "student: update"): Figures(V5P, mfu=0.6),
    ("distill_qwen_32b", "student: update"): Figures(V5P, mfu=0.6),
    ("distill_llama_8b", "student: update"): Figures(V5P, mfu=0.6),
    ("distill_llama_70b", "student: update"): Figures(V5P, mfu=0.6),
    ("pretrain_v3", "stage_1"): Figures(V5P, mfu=0.4),
    ("r1:stage=sft", "update"): Figures(V5P, mfu=0.25),
    ("r1:stage=helpfulness", "update"): Figures(V5P, mfu=0.25),
    ("v3_post_training:stage=rl", "update"): Figures(V5P, mfu=0.25),
    ("r1_zero", "update"): Figures(V5P, mfu=0.25),
    ("r1:stage=reasoning", "update"): Figures(V5P, mfu=0.25),
    ("v32_grpo", "update"): Figures(V5P, mfu=0.25),
    # 32 slots of 17,408 positions, sixteen turns of them
    (TOOLS, "decode"): Figures(5.2, sent_gb=0.03, traffic_gb=5.3, operations=1900, collectives=190),
    (TOOLS, "read 128"): Figures(
        5.9, mfu=0.2, sent_gb=2.7, traffic_gb=85.0, operations=1850, collectives=185
    ),
    # 8,192 slots of 34,816 and of 67,584 positions
    ("r1:stage=reasoning", "decode"): Figures(
        24.0, sent_gb=1.6, traffic_gb=33.5, operations=7700, collectives=500, rate=250_000
    ),
    ("r1_zero", "decode"): Figures(
        42.0, sent_gb=1.6, traffic_gb=53.0, operations=7700, collectives=500
    ),
    (FEWER_SLOTS, "decode"): Figures(
        10.0, sent_gb=0.5, traffic_gb=10.9, operations=7000, collectives=500
    ),
    # 4,096 slots of 34,816 positions, whose caches are there twice; no weight is gathered
    ("v32_grpo", "decode"): Figures(
        52.0, sent_gb=1.0, traffic_gb=24.0, operations=23_000, collectives=700, rate=110_000
    ),
}


def config_of(name):
    """The ConfigDict of FILE or FILE:ARG, or of a name in VARIED."""
    name, fields = VARIED.get(name, (name, {}))
    module, _, arg = name.partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(arg or None)
    for field, value in fields.items():
        set_field(config, field, value)
    return config


def slice_name(name):
    """The slice of a name in SLICES or VARIED."""
    return SLICES[VARIED.get(name, (name,))[0]]


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


def compiled(name, program, cache=None):
    """(Figures, lines of what one device sends) of a program, compiled for the config's slice. cache: see
    launch.planning.compiled.
    """
    from launch.planning import topology

    config = config_of(name)
    mesh, chip = topology.planned_mesh(
        slice_name(name), config.get("mesh", {}), config.get("model", {})
    )
    from launch.planning.compiled import compile_programs
    from launch.planning.roofline import seconds_of, share_of_peak

    programs = topology.chosen(topology.recipes_programs(config, mesh), program)
    *_, (planned, found) = compile_programs(programs, cache)
    assert found.refusal is None, found.refusal
    seconds, cost = seconds_of(planned, found, chip).main, found.main
    sent = {key: one for key, one in cost.collectives.items() if one.wire_bytes >= 1e6}
    figures = Figures(
        gib=found.memory.peak / 2**30,
        mfu=share_of_peak(planned.flops, seconds.at_least, chip, planned.mesh.size),
        sent_gb=sum(one.wire_bytes for one in sent.values()) / 1e9,
        traffic_gb=cost.hbm_bytes / 1e9,
        operations=cost.count,
        collectives=cost.collective_count,
        rate=planned.tokens / seconds.likely,
    )
    lines = [
        f"{kind} over {' x '.join(along)}: {one.count:,} times, {one.wire_bytes / 1e9:,.2f} GB"
        for (kind, along), one in sorted(sent.items())
    ]
    return figures, lines


def file_of(kind, name):
    """The file of a snapshot."""
    safe = "".join(c if c.isalnum() else "_" for c in name)
    return FOLDER / kind / f"{safe}.txt"


def compiler():
    """The first line of what a compiler sends: another version of JAX may send other bytes."""
    import jax

    return f"compiled by jax {'.'.join(jax.__version__.split('.')[:2])}"


def kept(name, program):
    """(what `compiler` said, lines of what one device sends) of a program's snapshot."""
    text = file_of("collectives", f"{name} {program}").read_text()
    version, *lines = text.splitlines()
    return version, lines


def write(kind, name, lines):
    """Write a snapshot."""
    path = file_of(kind, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["collectives"]:
        from launch.planning.topology import ENVIRONMENT

        os.environ.update(ENVIRONMENT)
        cache = Path(sys.argv[2]) if sys.argv[2:] else None
        for name, program in COMPILED:
            figures, lines = compiled(name, program, cache)
            print(name, program, figures, flush=True)
            write("collectives", f"{name} {program}", [compiler(), *lines])
    else:
        for name in SLICES:
            write("parameters", name, placed(name))
