"""The table of the layouts that a search compiled.

Tests: tests/launch/planning/test_search.py.
"""

import dataclasses

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import Program
from launch.planning.layouts import Layout
from launch.planning.ranking import RankedMesh
from launch.planning.records import CompiledProgram
from launch.planning.roofline import seconds_of, share_of_peak
from launch.planning.summary import duration, fits, held_at_once, narrow_table


@dataclasses.dataclass(frozen=True)
class ComparedLayout:
    """A layout, its mesh as it was ranked, and its compiled updates."""

    layout: Layout
    ranked: RankedMesh
    compiled: list[tuple[Program, CompiledProgram]]

    def fits(self, chip: Chip):
        """Return whether every update fits."""
        return all(fits(program, compiled, chip) for program, compiled in self.compiled)

    def seconds(self, chip: Chip):
        """Return the seconds (at least, likely) of one call of each update, summed."""
        rooflines = [
            seconds_of(program, compiled, chip).call for program, compiled in self.compiled
        ]
        return sum(r.at_least for r in rooflines), sum(r.likely for r in rooflines)


def search_table(compared: list[ComparedLayout], chip: Chip):
    """Return a rich Table with a row for each ComparedLayout."""
    table = narrow_table(f"one {chip.device_kind}")
    table.add_column("mesh")
    for name in ("micro-\nbatches", "remat", "fits"):
        table.add_column(name, no_wrap=True)
    names = "state\nGiB", "peak\nGiB", "collectives\nestimated", "at least", "likely", "MFU"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in compared:
        layout = comparison.layout
        axes = " ".join(f"{axis}={size}" for axis, size in layout.mesh.items() if size > 1)
        table.add_row(
            axes or "one device",
            str(layout.micro_batches),
            layout.remat,
            "yes" if comparison.fits(chip) else "NO",
            *_numbers(comparison, chip),
        )
    return table


def _numbers(comparison, chip):
    """Return the cells of memory, time, and MFU at the likely time.

    State and collectives are the ranking's estimates.
    """
    state = f"{comparison.ranked.state / GIB:.2f}"
    collectives = duration(comparison.ranked.collectives(comparison.layout.micro_batches))
    if any(compiled.refusal is not None for _, compiled in comparison.compiled):
        return state, "refused", collectives, "-", "-", "-"
    peak_bytes = max(held_at_once(program, compiled) for program, compiled in comparison.compiled)
    least, likely = comparison.seconds(chip)
    flops = sum(program.flops for program, _ in comparison.compiled)
    mfu = share_of_peak(flops, likely, chip, comparison.compiled[0][0].mesh.size)
    peak = f"{peak_bytes / GIB:.2f}"
    return state, peak, collectives, duration(least), duration(likely), f"{mfu:.1%}"
