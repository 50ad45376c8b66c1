"""A plan as a page: a table of all programs, what a step takes, and a table of each program."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import GENERATION, SYNC, TRAINING, Program, argument_bytes
from deepseek_jax.parallel.torus import placement_text
from deepseek_jax.progress import line
from deepseek_jax.reports.deployment import attention_table
from launch.planning.compiled import compile_programs
from launch.planning.program_table import program_table
from launch.planning.records import Compiled
from launch.planning.remedies import remedies
from launch.planning.roofline import Seconds, seconds_of
from launch.planning.summary import duration, fits, held_at_once, narrow_table, summary_table

# Columns of the page
WIDTH = 100


def print_plan(programs: list[Program], chip: Chip, cache: Path | None):
    """Compile the programs, and print a table of all and one of each.

    Args:
        cache: The folder of compiled plans; None for no cache.

    Returns:
        Whether every program fits.
    """
    planned = []
    for program, compiled in compile_programs(programs, cache):
        seconds = seconds_of(program, compiled, chip)
        planned.append((program, compiled, seconds))
        line(compiled_line(program, compiled, seconds))
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(summary_table(planned, chip))
    for text in filter(None, dict.fromkeys(placement_text(p.mesh) for p in programs)):
        console.print(f"placement: {text}", highlight=False)
    for text in (*verdict_lines(planned, chip), *step_lines(planned)):
        console.print(text, highlight=False)
    for program, compiled, seconds in planned:
        console.print(program_table(program, compiled, seconds, chip))
    trained = (program.model for program in programs if program.model is not None)
    # Stages of one training differ in their indexers' loss, and one table is enough for them
    free = (dataclasses.replace(m, indexer_loss="none") for m in trained if m.has_indexer)
    for model in dict.fromkeys(free):
        console.print(attention_table(model))
    return all(fits(program, compiled, chip) for program, compiled, _ in planned)


def compiled_line(program: Program, compiled: Compiled, seconds: Seconds | None):
    """Return the line that a waiting reader gets as soon as a program is compiled."""
    if seconds is None:
        return f"{program.name}: does not compile"
    took = "from the cache" if compiled.seconds is None else f"compiled in {compiled.seconds:.0f} s"
    likely = f"likely {duration(seconds.main.likely)}{' a token' if seconds.token else ''}"
    return f"{program.name}: {took}, {held_at_once(program, compiled) / GIB:.1f} GiB, {likely}"


def verdict_lines(planned, chip: Chip):
    """Yield lines that say whether all programs fit, and what would help each that does not.

    Args:
        planned: [(Program, Compiled, Seconds or None)].
    """
    refused = [(program, one) for program, one, _ in planned if not fits(program, one, chip)]
    if not refused:
        program, one, _ = max(planned, key=lambda each: held_at_once(*each[:2]))
        most = f"{held_at_once(program, one) / GIB:.1f} of {chip.hbm_bytes / GIB:.2f} GiB"
        yield f"All fit. {program.name} holds most: {most}."
    for program, one in refused:
        yield f"{program.name} does not fit. What would help:"
        yield from (f"    {text}" for text in remedies(program, one, chip))


def step_lines(planned):
    """Yield lines on a step of reinforcement, by MLPerf's names, if all its programs compile.

    Args:
        planned: [(Program, Compiled, Seconds or None)].
    """
    groups = defaultdict(list)
    for program, _, seconds in planned:
        prefix, _, _ = program.name.rpartition(": ")
        groups[prefix].append((program, seconds))
    for prefix, group in groups.items():
        parts = {program.part for program, _ in group}
        if parts != {TRAINING, GENERATION, SYNC} or any(s is None for _, s in group):
            continue
        total = {part: [0.0, 0.0] for part in (TRAINING, GENERATION, SYNC)}
        for program, seconds in group:
            if program.name != "pretrain":
                least, likely = total[program.part]
                more = seconds.of_step(program)
                total[program.part] = [least + more[0], likely + more[1]]
        least, likely = (sum(both) for both in zip(*total.values(), strict=True))
        split = ", ".join(f"{name} {duration(both[1])}" for name, both in total.items())
        whose = prefix or "a step"
        yield f"{whose}, with the longest completions: at least {duration(least)}, likely {duration(likely)}"
        yield f"    {split}"


def print_shapes(programs: list[Program], chip: Chip):
    """Print what needs no compiler.

    Returns:
        Whether every program's arguments fit, with what else is in memory.
    """
    table = narrow_table(f"one {chip.device_kind}, without a compiler")
    for name in ("program", "sizes"):
        table.add_column(name)
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
