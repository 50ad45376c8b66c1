"""A plan as tables: what each program of an experiment needs on one device."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import GENERATION, SYNC, TRAINING, Program, argument_bytes
from deepseek_jax.parallel.torus import placement_text
from deepseek_jax.reports.deployment import attention_table
from launch.planning.compiled import Compiled, compile_programs
from launch.planning.remedies import remedies
from launch.planning.roofline import Roofline, roofline, share_of_peak

WIDTH = 160  # columns


def print_plan(programs: list[Program], chip: Chip, cache: Path | None):
    """Compile the programs and print a table of each, then one of all: -> whether every one fits."""
    console, planned = Console(width=WIDTH, soft_wrap=True), []
    for text in filter(None, dict.fromkeys(placement_text(p.mesh) for p in programs)):
        console.print(f"placement: {text}", highlight=False)
    for program, compiled in compile_programs(programs, cache):
        seconds = None
        if compiled.refusal is None:
            seconds = roofline(compiled.cost, chip, program.mesh)
        planned.append((program, compiled, seconds))
        console.print(program_table(program, compiled, seconds, chip))
    console.print(summary_table(planned, chip))
    trained = (program.model for program in programs if program.model is not None)
    # Stages of one training differ in what their indexers learn from
    free = (dataclasses.replace(m, indexer_loss="none") for m in trained if m.has_indexer)
    for model in dict.fromkeys(free):
        console.print(attention_table(model))
    for line in step_lines(planned):
        console.print(line)
    return all(fits(program, compiled, chip) for program, compiled, _ in planned)


def fits(program: Program, compiled: Compiled, chip: Chip):
    """Whether the compiler accepts a program, and a device has room for its peak and what lies beside it."""
    return compiled.refusal is None and held_at_once(program, compiled) <= chip.hbm_bytes


def held_at_once(program: Program, compiled: Compiled):
    """The most bytes that one device holds while a program runs."""
    return compiled.memory.peak + program.beside_bytes


def program_table(program: Program, compiled: Compiled, seconds: Roofline | None, chip: Chip):
    """A rich Table of one program, on one device."""
    table = Table(title=program.name, show_header=False, title_justify="left")
    axes = " ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1)
    table.add_row("devices", f"{program.mesh.size} x {chip.device_kind} {axes}")
    if program.sizes:
        table.add_row("sizes", program.sizes)
    if compiled.refusal is not None:
        table.add_row("does not fit", compiled.refusal)
    else:
        for name, size in vars(compiled.memory).items():
            table.add_row(f"{name}, bytes", _bytes(size))
        for held in program.beside:
            table.add_row(f"beside it, {held.name}", _bytes(held.bytes))
        share = held_at_once(program, compiled) / chip.hbm_bytes
        verdict = "fits" if fits(program, compiled, chip) else "does not fit"
        table.add_row(verdict, f"{share:.1%} of {chip.hbm_bytes / GIB:.2f} GiB")
        for name, text in _work(program, compiled, seconds, chip):
            table.add_row(name, text)
    if not fits(program, compiled, chip):
        for line in remedies(program, compiled, chip):
            table.add_row("would help", line)
    return table


def _bytes(size):
    return f"{size:,} = {size / GIB:.2f} GiB"


def _work(program, compiled, seconds, chip):
    """(name, text) of what one device does in a call, and how long it takes."""
    cost, devices = compiled.cost, program.mesh.size
    executed = cost.flops.total()
    # 0: all products are in kernels that the next lines name
    if program.flops and executed:
        needed = program.flops / devices
        yield "FLOPs needed, carried out", f"{needed:.3e}, {executed:.3e}: {needed / executed:.1%}"
    for kernel, times in cost.unknown.items():
        yield "FLOPs not counted", f"{kernel}, {times:,} times"
    yield "memory traffic, bytes", f"{cost.hbm_bytes:.3e}"
    largest = sorted(cost.collectives.items(), key=lambda item: -item[1].wire_bytes)
    for (kind, axes), one in largest:
        share = f"{one.count:,} times, {one.asynchronous:,} of them overlapped"
        yield f"{kind}, {' x '.join(axes)}", f"{one.wire_bytes:.3e} bytes sent, {share}"
    yield (
        "seconds",
        f"{seconds.hidden:.3g} with collectives hidden, {seconds.exposed:.3g} without; "
        f"bound by {seconds.bound} (products {seconds.products:.3g}, memory {seconds.memory:.3g}, "
        f"collectives {seconds.collectives:.3g})",
    )
    if program.tokens:
        shares = [
            share_of_peak(program.flops, s, chip, devices)
            for s in (seconds.hidden, seconds.exposed)
        ]
        rate = program.tokens / seconds.hidden
        yield "tokens a second, MFU", f"{rate:,.0f}, at most {shares[0]:.1%} ({shares[1]:.1%})"


def summary_table(planned, chip: Chip):
    """A rich Table with a row for each (Program, Compiled, Roofline or None)."""
    table = Table(box=SIMPLE_HEAD, title=f"one {chip.device_kind}", title_justify="left")
    for name in ("program", "sizes", "fits"):
        table.add_column(name, no_wrap=True)
    for name in (
        "peak GiB",
        "beside it",
        "TFLOP",
        "GB",
        "GB sent",
        "seconds",
        "bound by",
        "MFU at most",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for program, compiled, seconds in planned:
        verdict = "yes" if fits(program, compiled, chip) else "NO"
        if compiled.refusal is not None:
            table.add_row(program.name, program.sizes, verdict, *["-"] * 8)
            continue
        cost = compiled.cost
        sent = sum(one.wire_bytes for one in cost.collectives.values())
        mfu = "-"
        if program.flops:
            mfu = f"{share_of_peak(program.flops, seconds.hidden, chip, program.mesh.size):.1%}"
        table.add_row(
            program.name,
            program.sizes,
            verdict,
            f"{compiled.memory.peak / GIB:.2f}",
            f"{program.beside_bytes / GIB:.2f}",
            f"{cost.flops.total() / 1e12:.3g}",
            f"{cost.hbm_bytes / 1e9:.3g}",
            f"{sent / 1e9:.3g}",
            f"{seconds.hidden:.3g}-{seconds.exposed:.3g}",
            seconds.bound,
            mfu,
        )
    return table


def step_lines(planned):
    """Lines on a step of reinforcement by MLPerf's names, where all its programs compile."""
    groups = defaultdict(list)
    for program, _, seconds in planned:
        prefix, _, _ = program.name.rpartition(": ")
        groups[prefix].append((program, seconds))
    for prefix, group in groups.items():
        parts = {program.part for program, _ in group}
        if parts != {TRAINING, GENERATION, SYNC} or any(s is None for _, s in group):
            continue
        total = dict.fromkeys((TRAINING, GENERATION, SYNC), 0.0)
        for program, seconds in group:
            if program.name != "pretrain":
                total[program.part] += program.times * seconds.hidden
        split = ", ".join(f"{name} {seconds:.3g}" for name, seconds in total.items())
        yield f"{prefix or 'a step'}, seconds at most hidden and with the longest completions: {split}"


def print_shapes(programs: list[Program], chip: Chip):
    """Print what needs no compiler: -> whether every program's arguments and what lies beside it fit."""
    table = Table(box=SIMPLE_HEAD, title=f"one {chip.device_kind}, without a compiler")
    table.add_column("program", no_wrap=True)
    table.add_column("sizes", no_wrap=True)
    for name in ("arguments GiB", "beside it", "TFLOP needed", "seconds at peak"):
        table.add_column(name, justify="right")
    all_fit = True
    for program in programs:
        held, needed = "-", program.flops / program.mesh.size
        others = program.beside_bytes
        if not program.needs:
            size = argument_bytes(program.arguments)
            held, all_fit = f"{size / GIB:.2f}", all_fit and size + others <= chip.hbm_bytes
        seconds = needed / chip.flops_per_second
        numbers = f"{others / GIB:.2f}", f"{needed / 1e12:.3g}", f"{seconds:.3g}"
        table.add_row(program.name, program.sizes, held, *numbers)
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(table)
    console.print(
        "Arguments are parameters, optimizer state, reference and batch; temporaries come on top."
    )
    return all_fit
