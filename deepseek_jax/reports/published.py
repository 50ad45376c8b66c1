"""Our prediction of a published training step beside the published time."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.compiled import compile_programs
from deepseek_jax.costs.program import Program
from deepseek_jax.costs.published import DIFFERENT, LEFT_OUT, Published
from deepseek_jax.costs.roofline import Roofline, roofline, share_of_peak
from deepseek_jax.reports.plan import WIDTH, fits, program_table


def print_published(row: Published, program: Program, chip: Chip, cache: Path | None):
    """Compile our program of a published step and print both times: -> whether it fits."""
    console = Console(width=WIDTH, soft_wrap=True)
    [(_, compiled)] = compile_programs([program], cache)
    seconds = None
    if compiled.refusal is None:
        seconds = roofline(compiled.cost, chip, program.mesh)
    console.print(program_table(program, compiled, seconds, chip))
    if seconds is not None:
        console.print(published_table(row, program, seconds, chip))
    return fits(program, compiled, chip)


def published_table(row: Published, program: Program, seconds: Roofline, chip: Chip):
    """A rich Table of the predicted and the published time, and what lies between them."""
    table = Table(title=row.name, show_header=False, title_justify="left")
    table.add_row("source", row.source)
    table.add_row("tokens a step", f"{row.tokens:,} = {row.rows:,} rows x {row.length:,}")
    table.add_row("published", f"{row.seconds:.2f} s, {_mfu(program, row.seconds, chip)}")
    ends = {"collectives hidden": seconds.hidden, "collectives exposed": seconds.exposed}
    for name, predicted in ends.items():
        text = f"{predicted:.2f} s, {_mfu(program, predicted, chip)}; published is "
        table.add_row(f"predicted, {name}", f"{text}{row.factor(predicted):.2f} times that")
    for line in LEFT_OUT:
        table.add_row("left out", line)
    for line in DIFFERENT:
        table.add_row("different", line)
    return table


def _mfu(program, seconds, chip):
    return f"MFU {share_of_peak(program.flops, seconds, chip, program.mesh.size):.1%}"
