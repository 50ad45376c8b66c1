"""The plan's verdict on each run before it is submitted: whether it fits, and its chip-hours.

Another process computes the plans, with an environment for devices that are not there.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.costs.chips import CHIPS, GIB
from deepseek_jax.errors import CannotPlan
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.experiment_file import as_config
from deepseek_jax.rewards.worker import SPAWN
from launch.planning.topology import ENVIRONMENT, on_gpus, planned_mesh, recipes_programs
from launch.sweeps.runs import Run


class Verdict(NamedTuple):
    """What a plan says about one run.

    Attributes:
        reason: Why the run cannot run; None if it can.
        chip_hours: None if they are not known.
        note: Why they are not known; "" without a known cause.
    """

    reason: str | None = None
    chip_hours: float | None = None
    note: str = ""


def able_runs(folder, runs: list[Run], topology: str | None, cache: Path | None):
    """Return the runs that the plan does not refuse.

    Prints why the plan refuses the others, and the chip-hours. Complete runs are not planned.

    Args:
        topology: The value of --topology; None plans nothing.
        cache: The folder of compiled plans; None for no cache.

    Raises:
        ValueError: No run can run there; or see `verdicts`.
    """
    complete_records, refused_runs, hours_by_run = folder.complete(), [], {}
    pending_runs = [run for run in runs if complete_records.get(run.name) != run.record]
    if topology is None or not pending_runs:
        if pending_runs:
            print("chip-hours are unknown without --topology", flush=True)
        return runs
    for run, run_verdict in verdicts(pending_runs, topology, cache):
        if run_verdict.reason is not None:
            refused_runs.append(run)
            print(
                f"{run.name}: cannot run on {topology}, and is left out: {run_verdict.reason}",
                flush=True,
            )
            continue
        hours_by_run[run.name] = run_verdict.chip_hours
        note = f" ({run_verdict.note})" if run_verdict.note else ""
        print(f"{run.name}: {_hours(run_verdict.chip_hours)}{note}", flush=True)
    if len(refused_runs) == len(runs):
        raise ValueError(f"--topology={topology}: none of the {len(runs)} runs can run there")
    known_hours = [run_hours for run_hours in hours_by_run.values() if run_hours is not None]
    num_unknown = len(hours_by_run) - len(known_hours)
    unknown_text = f"; unknown for {num_unknown} of {len(hours_by_run)} runs" if num_unknown else ""
    print(f"in all: {_hours(sum(known_hours) if known_hours else None)}{unknown_text}", flush=True)
    return [run for run in runs if run not in refused_runs]


def _hours(hours):
    return "chip-hours unknown" if hours is None else f"about {hours:,.3g} chip-hours"


def verdicts(runs: list[Run], topology: str, cache: Path | None):
    """Plan the runs in turn.

    Yields:
        (Run, Verdict).

    Raises:
        ValueError: The topology is not known.
    """
    # In a fresh process: this one has imported jax for other devices
    with ProcessPoolExecutor(1, SPAWN, _set_environment) as pool:
        pool.submit(check_topology, topology).result()
        for run in runs:
            try:
                with waiting_for(f"planning {run.name} for {topology}"):
                    run_verdict = pool.submit(verdict, run.config, topology, cache).result()
                yield run, run_verdict
            except BrokenProcessPool:
                # A compiler that aborts ends its process. That says nothing about the run
                yield run, Verdict(note="its plan ended its process")
                yield from verdicts(runs[runs.index(run) + 1 :], topology, cache)
                return


def _set_environment():
    os.environ.update(ENVIRONMENT)


def check_topology(topology: str):
    """Raise ValueError if a topology is not known, or if nothing here compiles for it."""
    on_gpus(topology)
    planned_mesh(topology, {})


def verdict(config: dict, topology: str, cache: Path | None):
    """Return the Verdict on one run."""
    config = as_config(config)
    try:
        mesh, chip = planned_mesh(topology, config.get("mesh", {}), config.get("model", {}))
        programs = recipes_programs(config, mesh)
    except CannotPlan as error:
        return Verdict(note=str(error))
    except ValueError as error:
        return Verdict(reason=str(error))
    planned_programs = (
        shapes(programs, chip) if on_gpus(topology) else compiled(programs, chip, cache)
    )
    seconds_by_program = {}
    for program, program_seconds, reason in planned_programs:
        if reason is not None:
            return Verdict(reason=f"{program.name}: {reason}")
        seconds_by_program[program.name] = program_seconds
    total_seconds = run_seconds(programs, seconds_by_program)
    return Verdict(chip_hours=total_seconds and total_seconds * chips(mesh, chip) / 3600)


def compiled(programs, chip, cache):
    """Compile the programs for TPUs.

    Yields:
        (Program, likely seconds of its calls in a step, None), or (Program, None, why it does not
        fit).
    """
    from launch.planning.compiled import compile_programs
    from launch.planning.roofline import seconds_of
    from launch.planning.summary import fits, held_at_once

    for program, compiled_program in compile_programs(programs, cache):
        if fits(program, compiled_program, chip):
            _, likely = seconds_of(program, compiled_program, chip).of_step(program)
            yield program, likely, None
        else:
            yield (
                program,
                None,
                compiled_program.refusal
                or _too_much(held_at_once(program, compiled_program), chip),
            )


def shapes(programs, chip):
    """Estimate what needs no compiler, for GPUs.

    Yields:
        (Program, seconds of its calls in a step at a GPU's peak, None or why it does not fit).
    """
    from deepseek_jax.costs.program import argument_bytes

    for program in programs:
        held_bytes = program.beside_bytes + (
            0 if program.needs else argument_bytes(program.arguments)
        )
        seconds = program.runs * program.flops / program.mesh.size / chip.flops_per_second
        yield program, seconds, _too_much(held_bytes, chip) if held_bytes > chip.hbm_bytes else None


def _too_much(size, chip):
    return f"{size / GIB:.2f} GiB, of {chip.hbm_bytes / GIB:.2f} GiB of a {chip.device_kind}"


def run_seconds(programs, seconds: dict):
    """Return the seconds of all updates of a run, with their rollouts; None without updates.

    Evaluations and data do not count.

    Args:
        seconds: {program's name: seconds of its calls in a step}.
    """
    from deepseek_jax.costs.program import GENERATION, REWARD, SYNC, TRAINING, step_of

    total_seconds = 0.0
    for update in programs:
        if update.model is None:
            continue
        kind = update.name.rpartition(": ")[2]
        group = [p for p in programs if step_of(p) == step_of(update) and p.name != "pretrain"]
        is_reinforced = {p.part for p in group} - {REWARD} == {TRAINING, GENERATION, SYNC}
        # A step of reinforcement consists of its rollout, its scoring and its updates
        called_programs = group if is_reinforced and kind != "pretrain" else [update]
        total_seconds += (
            sum(seconds[program.name] for program in called_programs) * update.settings.num_steps
        )
    return total_seconds or None


def chips(mesh, chip):
    """Return how many chips the devices of a mesh are."""
    devices_by_kind = {known_chip.device_kind: known_chip.devices for known_chip in CHIPS.values()}
    return mesh.size / devices_by_kind.get(chip.device_kind, 1)
