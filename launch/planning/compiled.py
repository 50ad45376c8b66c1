"""Compile programs ahead of time, and read off what one device holds and does. Results are cached on disk."""

import dataclasses
import hashlib
import json
import os
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.costs.chips import chip_of
from deepseek_jax.costs.program import Held, Program, beside
from deepseek_jax.progress import waiting_for
from launch.planning.hlo import Cost, decoding_costs, program_cost
from launch.planning.hlo_collectives import Collective

# The version of what is read off a program: a new number computes it anew
VERSION = 4
# The environment's flags for the compilers
COMPILER_FLAGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: a program's arguments, those of them that its results take the place of, results,
    temporaries, and the most that is alive at once.
    """

    arguments: int
    updated: int
    results: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as compiled for one device, or the compiler's refusal. cost: of a call; token: of one turn of
    its loop where it decodes, None elsewhere. specs: of the results' shardings. seconds: of the compiler;
    None for what was in the cache.
    """

    memory: Memory | None = None
    cost: Cost | None = None
    token: Cost | None = None
    specs: tuple = ()
    refusal: str | None = None
    seconds: float | None = dataclasses.field(default=None, compare=False)

    @property
    def main(self):
        """The Cost that the Program's tokens and flops belong to."""
        return self.token or self.cost


def compile_programs(programs: list[Program], cache: Path | None = None):
    """Compile programs in order: yields (Program, Compiled) as each is ready. Beside the Program lie the
    results of those that it names as waiting.

    cache: a folder for results, by the programs' contents. A program that needs the results of a refused one
    is refused too. The devices need not exist: see jax.experimental.topologies.
    """
    results = {}
    for number, program in enumerate(programs, start=1):
        if missing := [name for name in program.after if name not in results]:
            refusal = f"it needs the results of {missing[0]!r}, which was refused"
            yield program, Compiled(refusal=refusal)
            continue
        arguments = program.arguments_after(results)
        with waiting_for(f"compiling program {number} of {len(programs)}, {program.name}"):
            compiled, lowered = _compiled(program, arguments, cache)
        if compiled.refusal is None:
            results[program.name] = _results(program, lowered, compiled.specs)
        waiting = [Held(f"the results of {name}", results[name]) for name in program.waiting]
        yield *beside([program], *waiting), compiled


def _compiled(program, arguments, cache):
    """(Compiled, what was lowered)."""
    device = program.mesh.devices.flat[0]
    with jax.set_mesh(program.mesh), jax.default_device(device):
        traced = program.function.trace(*arguments)
        lowered = traced.lower(lowering_platforms=(device.platform,))
        path = None if cache is None else cache / f"{_digest(program, lowered)}.json"
        if path is not None and path.exists():
            return _from_json(json.loads(path.read_text())), lowered
        began = time.monotonic()
        compiled = _compile(program, lowered)
        compiled = dataclasses.replace(compiled, seconds=time.monotonic() - began)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_as_json(compiled)))
    return compiled, lowered


def _compile(program, lowered):
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # The first line says whether memory or a kernel's limits refuse it
        return Compiled(refusal=str(error).splitlines()[0])
    found = done.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        updated=found.alias_size_in_bytes,
        results=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        peak=found.peak_memory_in_bytes,
    )
    specs = tuple(place.spec for place in jax.tree.leaves(done.output_shardings))
    read = done.as_text(), dict(program.mesh.shape), program.filled
    cost, token = decoding_costs(*read) if program.token_steps else (program_cost(*read), None)
    return Compiled(memory, cost, token, specs)


def _results(program, lowered, specs):
    """The program's results as ShapeDtypeStructs with shardings."""
    leaves, tree = jax.tree.flatten(lowered.out_info)
    placed = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(program.mesh, spec))
        for x, spec in zip(leaves, specs, strict=True)
    ]
    return jax.tree.unflatten(tree, placed)


def _digest(program, lowered):
    """A hash of what the result depends on: the program's text, its devices, the compiler and its flags."""
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


def _as_json(compiled):
    if compiled.refusal is not None:
        return {"refusal": compiled.refusal}
    return {
        "memory": dataclasses.asdict(compiled.memory),
        "specs": [[list(e) if isinstance(e, tuple) else e for e in s] for s in compiled.specs],
        "cost": _cost_as_json(compiled.cost),
        "token": compiled.token and _cost_as_json(compiled.token),
    }


def _from_json(read):
    if "refusal" in read:
        return Compiled(refusal=read["refusal"])
    specs = tuple(
        PartitionSpec(*(tuple(e) if isinstance(e, list) else e for e in s)) for s in read["specs"]
    )
    token = read["token"] and _cost_from_json(read["token"])
    return Compiled(Memory(**read["memory"]), _cost_from_json(read["cost"]), token, specs)


def _cost_as_json(cost):
    return {
        "flops": cost.flops,
        "unknown": cost.unknown,
        "hbm_bytes": cost.hbm_bytes,
        "count": cost.count,
        "cycles": cost.cycles,
        "operations": [[*key, times] for key, times in cost.operations.items()],
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
        collectives={
            (kind, tuple(axes)): Collective(**one) for kind, axes, one in read["collectives"]
        },
        count=read["count"],
        cycles=read["cycles"],
    )
