"""The table of one program in a plan: what a device holds, what it does, and how long it takes.

Tests: tests/launch/planning/test_report.py, tests/launch/test_plan.py.
"""

from rich.table import Table

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import Program
from launch.planning.hlo import Cost
from launch.planning.records import CompiledProgram
from launch.planning.roofline import Roofline, Seconds, share_of_peak
from launch.planning.summary import duration, fits, held_at_once


def program_table(program: Program, compiled: CompiledProgram, seconds: Seconds | None, chip: Chip):
    """Return a rich Table of one program, for one device."""
    table = Table(title=program.name, show_header=False, title_justify="left")
    axes = " ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1)
    table.add_row("devices", f"{program.mesh.size} x {chip.device_kind} {axes}")
    if program.sizes:
        table.add_row("sizes", program.sizes)
    if compiled.refusal is not None:
        table.add_row("does not fit", compiled.refusal)
    else:
        for name, text in _memory(program, compiled, chip):
            table.add_row(name, text)
    if program.host_bytes:
        table.add_row("a process's own memory, bytes", _bytes(program.host_bytes))
    if seconds is not None:
        for name, text in _works(program, compiled, seconds, chip):
            # The rows "a call" and "a token" each begin a section
            if name.startswith("a "):
                table.add_section()
            table.add_row(name, text)
    return table


def _memory(program, compiled, chip):
    """Yield the rows (name, text) on what one device holds."""
    for name, size in vars(compiled.memory).items():
        if size:
            yield f"{name}, bytes", _bytes(size)
    for resident in program.beside:
        yield f"beside it, {resident.name}", _bytes(resident.bytes)
    share = held_at_once(program, compiled) / chip.hbm_bytes
    verdict = "fits" if fits(program, compiled, chip) else "does not fit"
    yield verdict, f"{share:.1%} of {chip.hbm_bytes / GIB:.2f} GiB"


def _bytes(size):
    return f"{size:,} = {size / GIB:.2f} GiB"


def _works(program, compiled, seconds, chip):
    """Yield the rows (name, text) on one device's work in a call, and in a token if it decodes."""
    yield "a call", f"at most {program.times:,} in a step"
    if seconds.token is None:
        yield from _needed(program, compiled.cost)
    yield from _work(compiled.cost, seconds.call)
    if seconds.token is not None:
        yield "a token", f"at most {program.token_steps:,} in a step"
        yield from _needed(program, compiled.token)
        yield from _work(compiled.token, seconds.token)
    if program.tokens:
        yield from _rates(program, seconds.main, chip)
    if seconds.token is not None and compiled.token.collectives:
        yield from _none_asynchronous(compiled.token, chip)


def _needed(program, cost):
    """Yield the rows on FLOPs: needed against carried out, and kernels that are not counted.

    The first row needs a count of FLOPs that are carried out.
    """
    executed = cost.flops.total()
    if program.flops and executed:
        needed = program.flops / program.mesh.size
        yield "FLOPs needed, carried out", f"{needed:.3e}, {executed:.3e}: {needed / executed:.1%}"
    for kernel, times in cost.unknown.items():
        yield "FLOPs not counted", f"{kernel}, {times:,} times"


def _work(cost: Cost, seconds: Roofline):
    yield "memory traffic, bytes", f"{cost.hbm_bytes:.3e}"
    copies = f"{cost.beside_count:,} of them copies beside the others"
    yield "operations", f"{cost.count:,}, {copies}"
    yield "collectives", f"{cost.collective_count:,}"
    for (kind, axes), collective in sorted(
        cost.collectives.items(), key=lambda item: -item[1].wire_bytes
    ):
        share = f"{collective.count:,} times, {collective.asynchronous:,} asynchronous"
        yield f"{kind}, {' x '.join(axes)}", f"{collective.wire_bytes:.3e} bytes sent, {share}"
    limits = ["products", "memory"] + ["collectives"] * bool(cost.collectives)
    peaks_text = ", ".join(f"{name} {duration(getattr(seconds, name))}" for name in limits)
    yield "at least", f"{duration(seconds.at_least)}: {peaks_text}"
    likely_text = f"operations {duration(seconds.operations)}, latency {duration(seconds.latency)}"
    if cost.collectives:
        likely_text += f", collectives that nothing hides {duration(seconds.waited)}"
    yield "likely", f"{duration(seconds.likely)}: {likely_text}"
    yield "bound by", seconds.bound


def _rates(program, seconds, chip):
    times = seconds.likely, seconds.at_least
    rates = [f"{program.tokens / s:,.0f}" for s in times]
    shares = [f"{share_of_peak(program.flops, s, chip, program.mesh.size):.1%}" for s in times]
    yield "tokens a second", f"{rates[0]} likely, {rates[1]} at most"
    if program.flops:
        yield "MFU", f"{shares[0]} likely, {shares[1]} at most"


def _none_asynchronous(cost, chip):
    """Yield a row on what was tried, if no collective of a token overlaps with other work."""
    if not cost.asynchronous_count:
        tried_options = (
            ", ".join(chip.tried_on_decoding) or "no option of the compiler for this chip"
        )
        yield "asynchronous", f"no collective; tried: {tried_options} (costs/chips.py)"
