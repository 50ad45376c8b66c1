"""A plan as a page: a table of all programs, what a step takes, and a table of each program."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import (
    GENERATION,
    REWARD,
    SYNC,
    TRAINING,
    Program,
    argument_bytes,
    step_of,
)
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.torus import placement_text
from deepseek_jax.progress import line
from deepseek_jax.reports.deployment import attention_table
from launch.planning.compiled import compile_programs
from launch.planning.program_table import program_table
from launch.planning.records import CompiledProgram
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
    plans = []
    for program, compiled in compile_programs(programs, cache):
        seconds = seconds_of(program, compiled, chip)
        plans.append((program, compiled, seconds))
        line(compiled_line(program, compiled, seconds))
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(summary_table(plans, chip))
    for text in filter(None, dict.fromkeys(placement_text(p.mesh) for p in programs)):
        console.print(f"placement: {text}", highlight=False)
    for text in (*verdict_lines(plans, chip), *step_lines(plans)):
        console.print(text, highlight=False)
    for program, compiled, seconds in plans:
        console.print(program_table(program, compiled, seconds, chip))
    models = (program.model for program in programs if program.model is not None)
    # Stages of one training differ in their indexers' loss, and one table is enough for them
    models_without_loss = (
        dataclasses.replace(m, indexer_loss="none")
        for m in models
        if isinstance(m, ModelConfig) and m.has_indexer
    )
    for model in dict.fromkeys(models_without_loss):
        console.print(attention_table(model))
    return all(fits(program, compiled, chip) for program, compiled, _ in plans)


def compiled_line(program: Program, compiled: CompiledProgram, seconds: Seconds | None):
    """Return the line that a waiting reader gets as soon as a program is compiled."""
    if seconds is None:
        return f"{program.name}: does not compile"
    compile_text = (
        "from the cache" if compiled.seconds is None else f"compiled in {compiled.seconds:.0f} s"
    )
    likely_text = f"likely {duration(seconds.main.likely)}{' a token' if seconds.token else ''}"
    return f"{program.name}: {compile_text}, {held_at_once(program, compiled) / GIB:.1f} GiB, {likely_text}"


def verdict_lines(planned, chip: Chip):
    """Yield lines that say whether all programs fit, and what would help each that does not.

    Args:
        planned: [(Program, CompiledProgram, Seconds or None)].
    """
    misfits = [
        (program, compiled) for program, compiled, _ in planned if not fits(program, compiled, chip)
    ]
    if not misfits:
        program, compiled, _ = max(planned, key=lambda plan: held_at_once(*plan[:2]))
        memory_text = (
            f"{held_at_once(program, compiled) / GIB:.1f} of {chip.hbm_bytes / GIB:.2f} GiB"
        )
        yield f"All fit. {program.name} holds most: {memory_text}."
    for program, compiled in misfits:
        yield f"{program.name} does not fit. What would help:"
        yield from (f"    {text}" for text in remedies(program, compiled, chip))


def step_lines(planned):
    """Yield lines on a step of reinforcement, by MLPerf's names, if all its programs compile.

    Args:
        planned: [(Program, CompiledProgram, Seconds or None)].
    """
    groups = defaultdict(list)
    for program, _, seconds in planned:
        groups[step_of(program)].append((program, seconds))
    for prefix, group in groups.items():
        part_names = {program.part for program, _ in group}
        parts = [TRAINING, GENERATION, SYNC] + [REWARD] * (REWARD in part_names)
        if part_names != set(parts) or any(s is None for _, s in group):
            continue
        seconds_by_part = {part: [0.0, 0.0] for part in parts}
        for program, seconds in group:
            if program.name != "pretrain":
                least, likely = seconds_by_part[program.part]
                step_seconds = seconds.of_step(program)
                seconds_by_part[program.part] = [least + step_seconds[0], likely + step_seconds[1]]
        least, likely = (sum(column) for column in zip(*seconds_by_part.values(), strict=True))
        split_text = ", ".join(
            f"{name} {duration(pair[1])}" for name, pair in seconds_by_part.items()
        )
        label = prefix or "a step"
        yield f"{label}, with the longest completions: at least {duration(least)}, likely {duration(likely)}"
        yield f"    {split_text}"


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
        arguments_text, needed_flops = "-", program.flops / program.mesh.size
        resident_bytes = program.beside_bytes
        if not program.needs:
            size = argument_bytes(program.arguments)
            arguments_text, all_fit = (
                f"{size / GIB:.2f}",
                all_fit and size + resident_bytes <= chip.hbm_bytes,
            )
        seconds = needed_flops / chip.flops_per_second
        cells = f"{resident_bytes / GIB:.2f}", f"{needed_flops / 1e12:.3g}", f"{seconds:.3g}"
        table.add_row(program.name, program.sizes, arguments_text, *cells)
    console = Console(width=WIDTH, soft_wrap=True)
    console.print(table)
    console.print(
        "Arguments are parameters, optimizer state, reference and batch; temporaries come on top."
    )
    return all_fit
