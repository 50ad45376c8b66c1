"""The main table of a plan: does each program fit, how long does it take, and what limits it?

Tests: tests/launch/planning/test_report.py.
"""

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import Program
from launch.planning.records import CompiledProgram
from launch.planning.roofline import share_of_peak


def fits(program: Program, compiled: CompiledProgram, chip: Chip):
    """Return whether a program fits on a device.

    It does if the compiler accepts it, and if the device has room for its peak and for what else is
    in memory while it runs.
    """
    return compiled.refusal is None and held_at_once(program, compiled) <= chip.hbm_bytes


def held_at_once(program: Program, compiled: CompiledProgram):
    """Return the most bytes that one device holds while a program runs; it must have compiled."""
    assert compiled.memory is not None
    return compiled.memory.peak + program.beside_bytes


def duration(seconds: float):
    """Return seconds as text, with three digits or more and a unit: "4.65 ms" or "2,270 s"."""
    rounded = float(f"{seconds:.3g}")
    if not rounded:
        return "0 s"
    units = ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)
    unit, size = next((candidate for candidate in units if rounded >= candidate[1]), units[-1])
    number = rounded / size
    return f"{number:,.{max(0, 2 - int(math.log10(max(number, 1))))}f} {unit}"


def narrow_table(title: str, caption: str | None = None):
    """Return a rich Table with columns that stand close together."""
    return Table(
        box=SIMPLE_HEAD,
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def summary_table(planned, chip: Chip):
    """Return a rich Table with a row for each program, and more rows for one that decodes.

    Args:
        planned: [(Program, CompiledProgram, Seconds or None)].
    """
    latencies = [
        f"{seconds * 1e6:g} us"
        for seconds in (chip.seconds_per_operation, chip.seconds_per_collective)
    ]
    # The lines are no wider than the page, because a caption does not wrap
    caption = (
        "GiB: the peak and what lies beside the program. at least: by the chip's peaks alone.\n"
        f"likely: {latencies[0]} more an operation, {latencies[1]} a collective that nothing hides: "
        "assumed.\n"
        "all calls: likely, of a step or an evaluation with the longest completions.\n"
        "tokens/s, MFU: at the likely time."
    )
    if any(seconds is not None and seconds.two_rounds is not None for *_, seconds in planned):
        reason = "a token whose rows for experts find no room in one (parallel/round_trip.py)"
        caption += f"\n2 rounds: {reason}."
    table = narrow_table(f"one {chip.device_kind}", caption)
    table.add_column("program")
    table.add_column("fits", no_wrap=True)
    share = f"GiB of {chip.hbm_bytes / GIB:.4g}"
    for name in (share, "at least", "likely", "all calls", "tokens/s", "MFU", "bound by"):
        table.add_column(name, justify="right", no_wrap=True)
    for program, compiled, seconds in planned:
        verdict = "yes" if fits(program, compiled, chip) else "NO"
        if seconds is None:
            table.add_row(program.name, verdict, *["-"] * 7)
            continue
        held_text = f"{held_at_once(program, compiled) / GIB:.2f}"
        name = program.name if seconds.token is None else f"{program.name}, token"
        table.add_row(name, verdict, held_text, *_times(program, seconds.main, program.runs, chip))
        if seconds.two_rounds is not None:
            cells = _times(program, seconds.two_rounds, program.runs, chip)
            table.add_row(f"{program.name}, 2 rounds", "", "", *cells)
        if seconds.token is not None:
            cells = *_seconds(seconds.call, program.times), "-", "-", seconds.call.bound
            table.add_row(f"{program.name}, call", "", "", *cells)
    return table


def _seconds(roofline, num_calls):
    return (
        duration(roofline.at_least),
        duration(roofline.likely),
        duration(num_calls * roofline.likely),
    )


def _times(program, roofline, num_calls, chip):
    """Return the cells for the part (a call or a token) that the Program's FLOPs describe."""
    rate = f"{program.tokens / roofline.likely:,.0f}" if program.tokens else "-"
    mfu = "-"
    if program.flops:
        mfu = f"{share_of_peak(program.flops, roofline.likely, chip, program.mesh.size):.1%}"
    return *_seconds(roofline, num_calls), rate, mfu, roofline.bound
