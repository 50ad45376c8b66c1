"""The table of the layouts that a search compiled."""

import dataclasses

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import Program
from launch.planning.layouts import Layout
from launch.planning.ranking import Ranked
from launch.planning.records import Compiled
from launch.planning.roofline import seconds_of, share_of_peak
from launch.planning.summary import duration, fits, held_at_once, narrow_table


@dataclasses.dataclass(frozen=True)
class Compared:
    """A layout, its mesh as it was ranked, and its compiled updates."""

    layout: Layout
    ranked: Ranked
    compiled: list[tuple[Program, Compiled]]

    def fits(self, chip: Chip):
        """Return whether every update fits."""
        return all(fits(program, one, chip) for program, one in self.compiled)

    def seconds(self, chip: Chip):
        """Return the seconds (at least, likely) of one call of each update, summed."""
        times = [seconds_of(p, one, chip).call for p, one in self.compiled]
        return sum(t.at_least for t in times), sum(t.likely for t in times)


def search_table(compared: list[Compared], chip: Chip):
    """Return a rich Table with a row for each Compared."""
    table = narrow_table(f"one {chip.device_kind}")
    table.add_column("mesh")
    for name in ("micro-\nbatches", "remat", "fits"):
        table.add_column(name, no_wrap=True)
    names = "state\nGiB", "peak\nGiB", "collectives\nestimated", "at least", "likely", "MFU"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in compared:
        layout = one.layout
        axes = " ".join(f"{axis}={size}" for axis, size in layout.mesh.items() if size > 1)
        table.add_row(
            axes or "one device",
            str(layout.micro_batches),
            layout.remat,
            "yes" if one.fits(chip) else "NO",
            *_numbers(one, chip),
        )
    return table


def _numbers(one, chip):
    """Return the cells of memory, time, and MFU at the likely time.

    State and collectives are the ranking's estimates.
    """
    state = f"{one.ranked.state / GIB:.2f}"
    collectives = duration(one.ranked.collectives(one.layout.micro_batches))
    if any(compiled.refusal is not None for _, compiled in one.compiled):
        return state, "refused", collectives, "-", "-", "-"
    held = max(held_at_once(program, compiled) for program, compiled in one.compiled)
    least, likely = one.seconds(chip)
    flops = sum(program.flops for program, _ in one.compiled)
    mfu = share_of_peak(flops, likely, chip, one.compiled[0][0].mesh.size)
    peak = f"{held / GIB:.2f}"
    return state, peak, collectives, duration(least), duration(likely), f"{mfu:.1%}"
