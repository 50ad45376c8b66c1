"""A search for the layout of an experiment's updates: ranked by estimates, the best compiled and compared."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.layouts import Layout
from deepseek_jax.costs.program import Program
from launch.planning.compiled import Compiled, compile_programs
from launch.planning.ranking import Ranked, rank
from launch.planning.report import WIDTH, fits, held_at_once
from launch.planning.roofline import roofline, share_of_peak


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search varies. updates: on any mesh. meshes: [{axis: size}], of all the devices.

    mesh_of({axis: size}) is a Mesh of the devices. flags(layout): text that a user sets the layout by.
    planned(layout): the updates in that layout; raises ValueError where the recipe refuses it.
    """

    updates: list[Program]
    meshes: list[dict[str, int]]
    mesh_of: Callable[[dict], Mesh]
    flags: Callable[[Layout], str]
    planned: Callable[[Layout], list[Program]]


@dataclasses.dataclass(frozen=True)
class Compared:
    """A ranked layout and its compiled updates."""

    ranked: Ranked
    compiled: list[tuple[Program, Compiled]]

    def fits(self, chip: Chip):
        """Whether every update does."""
        return all(fits(program, one, chip) for program, one in self.compiled)

    def seconds(self, chip: Chip):
        """(with collectives hidden, with none hidden), of one call of each update."""
        times = [roofline(one.cost, chip, p.mesh) for p, one in self.compiled]
        return sum(t.hidden for t in times), sum(t.exposed for t in times)


def print_search(search: Search, count: int, chip: Chip, cache: Path | None):
    """Rank, compile the best `count` layouts and print a table of them: -> whether one of them fits."""
    console = Console(width=WIDTH, soft_wrap=True)
    console.print("ranking layouts by estimates ...")
    ranked, dropped = rank(search.updates, search.meshes, search.mesh_of, chip)
    small = sum(one.peak <= chip.hbm_bytes for one in ranked)
    console.print(f"{len(ranked):,} layouts split, {small:,} of them fit by the estimate")
    compared = []
    for one in ranked:
        if len(compared) == count:
            break
        try:
            programs = search.planned(one.layout)
        except ValueError as error:
            dropped.append(str(error))
            continue
        console.print(f"compiling {one.layout} ...")
        compared.append(Compared(one, list(compile_programs(programs, cache))))
    if dropped:
        console.print(f"{len(dropped):,} dropped, such as: {dropped[-1]}", highlight=False)
    console.print(search_table(compared, chip))
    fitting = [one for one in compared if one.fits(chip)]
    if not fitting:
        console.print("None of these fits; compile more of them with a larger --search.")
        return False
    best = min(fitting, key=lambda one: one.seconds(chip)[1])
    console.print(f"the best of them: {search.flags(best.ranked.layout)}")
    return True


def search_table(compared: list[Compared], chip: Chip):
    """A rich Table with a row for each Compared."""
    table = Table(box=SIMPLE_HEAD, title=f"one {chip.device_kind}", title_justify="left")
    for name in ("mesh", "micro-batches", "remat", "fits"):
        table.add_column(name, no_wrap=True)
    for name in ("peak GiB estimated", "compiled", "seconds estimated", "compiled", "MFU at most"):
        table.add_column(name, justify="right")
    for one in compared:
        layout = one.ranked.layout
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
    """The cells of memory, time and MFU."""
    peak, estimated = f"{one.ranked.peak / GIB:.2f}", f"{one.ranked.seconds:.3g}"
    if any(compiled.refusal is not None for _, compiled in one.compiled):
        return peak, "refused", estimated, "-", "-"
    held = max(held_at_once(program, compiled) for program, compiled in one.compiled)
    hidden, exposed = one.seconds(chip)
    flops = sum(program.flops for program, _ in one.compiled)
    mfu = share_of_peak(flops, hidden, chip, one.compiled[0][0].mesh.size)
    return peak, f"{held / GIB:.2f}", estimated, f"{hidden:.3g}-{exposed:.3g}", f"{mfu:.1%}"
