"""Compile programs ahead of time, and record what one device holds and does.

Results are cached on disk.
"""

import contextlib
import dataclasses
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from deepseek_jax.costs.program import Program, ResidentArrays, beside
from deepseek_jax.progress import waiting_for
from launch.planning.by_shapes import results_by_shapes
from launch.planning.hlo import decoding_costs, program_cost
from launch.planning.records import CompiledProgram, Memory
from launch.planning.stored import digest_of, read, write

# Programs for at most this many devices are so small that two of them compile at once
ONE_HOST = 8


def compile_programs(programs: list[Program], cache: Path | None = None):
    """Compile programs, and yield each as soon as it is ready.

    A program that needs the results of a refused one is refused too. The devices need not exist:
    see jax.experimental.topologies.

    Args:
        cache: A folder for results, with names by the programs' contents; None for no cache.

    Yields:
        (Program, CompiledProgram) in the order of the programs, without programs by_shapes. The Program's
        `beside` includes the results of the programs in its `waiting`.
    """
    # A pod's program takes gigabytes to compile
    workers = 2 if all(program.mesh.size <= ONE_HOST for program in programs) else 1
    pool = ThreadPoolExecutor(workers)
    # Updates come first: one takes as long as all programs of a rollout
    order = sorted(programs, key=lambda program: program.model is None and workers > 1)
    under_way = _UnderWay(order, cache, pool)
    programs_to_compile = [program for program in programs if not program.by_shapes]
    try:
        for number, program in enumerate(programs_to_compile, start=1):
            with waiting_for(
                f"compiling program {number} of {len(programs_to_compile)}, {program.name}"
            ):
                while program.name not in under_way.settled:
                    under_way.advance()
            yield under_way.with_waiting(program), under_way.settled[program.name].compiled
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Outcome(NamedTuple):
    """The outcome of a program.

    Attributes:
        compiled: None if only shapes are needed.
        results: The results as ShapeDtypeStructs; None for a refused program.
    """

    compiled: CompiledProgram | None
    results: Any


class _Job(NamedTuple):
    """A program that is compiling."""

    program: Program
    lowered: jax.stages.Lowered
    compiled: Future[CompiledProgram]


class _UnderWay:
    """A list of programs. Each one starts once all programs in its `after` have settled."""

    def __init__(self, programs, cache, pool):
        self.pending, self.cache, self.pool = {p.name: p for p in programs}, cache, pool
        self.by_shapes = {p.name for p in programs if p.by_shapes}
        # `jobs` and `settled` are by name, `futures` by digest: equal programs compile once
        self.jobs, self.settled, self.futures = {}, {}, {}

    def advance(self):
        """Start all programs that can start, and wait until one that compiles has settled."""
        for name, program in list(self.pending.items()):
            if not any(other in self.pending or other in self.jobs for other in program.after):
                self._start(self.pending.pop(name))
        wait([job.compiled for job in self.jobs.values()], return_when=FIRST_COMPLETED)
        for name, job in list(self.jobs.items()):
            if job.compiled.done():
                compiled, results = job.compiled.result(), None
                if compiled.refusal is None:
                    results = _results(job.program, job.lowered, compiled.specs)
                self.settled[name] = _Outcome(compiled, results)
                del self.jobs[name]

    def with_waiting(self, program):
        """Return the Program, with the results of the programs in its `waiting` in memory too."""
        waiting_results = []
        for name in program.waiting:
            suffix = ", by its shapes" if name in self.by_shapes else ""
            if (outcome := self.settled.get(name)) and outcome.results is not None:
                waiting_results.append(
                    ResidentArrays(f"the results of {name}{suffix}", outcome.results)
                )
        return beside([program], *waiting_results)[0]

    def _start(self, program):
        results_by_name = {n: self.settled[n].results for n in program.after if n in self.settled}
        if missing_names := [name for name in program.after if results_by_name.get(name) is None]:
            refusal = f"it needs the results of {missing_names[0]!r}, which was refused"
            self.settled[program.name] = _Outcome(CompiledProgram(refusal=refusal), None)
            return
        arguments = program.arguments_after(results_by_name)
        if program.by_shapes:
            self.settled[program.name] = _Outcome(None, results_by_shapes(program, arguments))
            return
        with _devices_of(program) as device:
            traced = program.function.trace(*arguments)
            lowered = traced.lower(lowering_platforms=(device.platform,))
        digest = digest_of(program, lowered)
        if digest not in self.futures:
            path = None if self.cache is None else self.cache / f"{digest}.json"
            self.futures[digest] = self.pool.submit(_compiled, program, lowered, path)
        self.jobs[program.name] = _Job(program, lowered, self.futures[digest])


@contextlib.contextmanager
def _devices_of(program):
    """Set the mesh and the default device of a program for the block.

    Yields:
        The device.
    """
    device = program.mesh.devices.flat[0]
    with jax.set_mesh(program.mesh), jax.default_device(device):
        yield device


def _compiled(program, lowered, path):
    """Return the CompiledProgram of a program, from its file in the cache if it is there.

    Args:
        path: The file; None without a cache.
    """
    if path is not None and path.exists():
        return read(path)
    began = time.monotonic()
    with _devices_of(program):
        compiled = _compile(program, lowered)
        compiled = dataclasses.replace(compiled, seconds=time.monotonic() - began)
    if path is not None:
        write(path, compiled)
    return compiled


def _compile(program, lowered):
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # The first line says the reason: memory, or a kernel's limits
        return CompiledProgram(refusal=str(error).splitlines()[0])
    memory_stats = executable.memory_analysis()
    memory = Memory(
        arguments=memory_stats.argument_size_in_bytes,
        updated=memory_stats.alias_size_in_bytes,
        results=memory_stats.output_size_in_bytes,
        temporaries=memory_stats.temp_size_in_bytes,
        peak=memory_stats.peak_memory_in_bytes,
    )
    specs = tuple(place.spec for place in jax.tree.leaves(executable.output_shardings))
    cost_inputs = executable.as_text(), dict(program.mesh.shape), program.filled
    if not program.token_steps:
        return CompiledProgram(memory, program_cost(*cost_inputs), specs=specs)
    cost, token, two_rounds = decoding_costs(*cost_inputs)
    return CompiledProgram(memory, cost, token, two_rounds, specs)


def _results(program, lowered, specs):
    """Return the program's results as ShapeDtypeStructs with shardings."""
    leaves, tree = jax.tree.flatten(lowered.out_info)
    structs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(program.mesh, spec))
        for x, spec in zip(leaves, specs, strict=True)
    ]
    return jax.tree.unflatten(tree, structs)
