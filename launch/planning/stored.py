"""Files for what was read from compiled programs, with names by the programs' contents.

Tests: tests/launch/planning/test_compiled.py.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jax.sharding import PartitionSpec

from deepseek_jax.costs.chips import chip_of
from deepseek_jax.files import write_whole
from launch.planning.hlo import Cost
from launch.planning.hlo_collectives import Collective
from launch.planning.records import COSTS, CompiledProgram, Memory

# The version of what is read from a program. With a new number, everything is compiled anew
VERSION = 7
# Environment variables with flags for the compilers
COMPILER_FLAGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"


def digest_of(program, lowered):
    """Return a hash of what a CompiledProgram depends on.

    It covers the program's text, its devices, the compiler, the compiler's flags, and VERSION.
    """
    devices = program.mesh.devices
    kind = devices.flat[0].device_kind, devices.shape, [str(d) for d in devices.flat]
    compiler = _version("jax"), _version("libtpu"), *map(os.environ.get, COMPILER_FLAGS)
    digest = hashlib.sha256(lowered.as_text().encode())
    chip = chip_of(devices.ravel())
    read = VERSION, program.filled, program.token_steps > 0
    digest.update(repr((read, kind, compiler, chip and chip.options)).encode())
    return digest.hexdigest()[:32]


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read(path: Path):
    """Read the CompiledProgram in a file."""
    return _from_json(json.loads(path.read_text()))


def write(path: Path, compiled: CompiledProgram):
    """Write a CompiledProgram to a file, in a folder that need not exist."""
    # Another plan may need the same program at the same time, and must not read half of the file
    write_whole(path, json.dumps(_as_json(compiled)))


def _as_json(compiled):
    if compiled.refusal is not None:
        return {"refusal": compiled.refusal}
    return {
        "memory": dataclasses.asdict(compiled.memory),
        "specs": [[list(e) if isinstance(e, tuple) else e for e in s] for s in compiled.specs],
    } | {name: one and _cost_as_json(one) for name, one in compiled.costs.items()}


def _from_json(read):
    if "refusal" in read:
        return CompiledProgram(refusal=read["refusal"])
    specs = tuple(
        PartitionSpec(*(tuple(e) if isinstance(e, list) else e for e in s)) for s in read["specs"]
    )
    costs = {name: read[name] and _cost_from_json(read[name]) for name in COSTS}
    return CompiledProgram(Memory(**read["memory"]), **costs, specs=specs)


def _cost_as_json(cost):
    return {
        "flops": cost.flops,
        "unknown": cost.unknown,
        "hbm_bytes": cost.hbm_bytes,
        "count": cost.count,
        "beside_count": cost.beside_count,
        "cycles": cost.cycles,
        "operations": [[*key, times] for key, times in cost.operations.items()],
        "rows": list(cost.rows.items()),
        "collectives": [
            [kind, list(axes), dataclasses.asdict(one)]
            for (kind, axes), one in cost.collectives.items()
        ],
    }


def _cost_from_json(read):
    return Cost(
        flops=Counter(read["flops"]),
        unknown=Counter(read["unknown"]),
        hbm_bytes=read["hbm_bytes"],
        operations=Counter({(flops, moved): n for flops, moved, n in read["operations"]}),
        rows=Counter(dict(read["rows"])),
        collectives={
            (kind, tuple(axes)): Collective(**one) for kind, axes, one in read["collectives"]
        },
        count=read["count"],
        beside_count=read["beside_count"],
        cycles=read["cycles"],
    )
