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
from deepseek_jax.rewards.workers import SPAWN
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
    complete, refused, hours = folder.complete(), [], {}
    pending = [run for run in runs if complete.get(run.name) != run.record]
    if topology is None or not pending:
        if pending:
            print("chip-hours are unknown without --topology", flush=True)
        return runs
    for run, found in verdicts(pending, topology, cache):
        if found.reason is not None:
            refused.append(run)
            print(
                f"{run.name}: cannot run on {topology}, and is left out: {found.reason}", flush=True
            )
            continue
        hours[run.name] = found.chip_hours
        note = f" ({found.note})" if found.note else ""
        print(f"{run.name}: {_hours(found.chip_hours)}{note}", flush=True)
    if len(refused) == len(runs):
        raise ValueError(f"--topology={topology}: none of the {len(runs)} runs can run there")
    known = [each for each in hours.values() if each is not None]
    unknown = len(hours) - len(known)
    more = f"; unknown for {unknown} of {len(hours)} runs" if unknown else ""
    print(f"in all: {_hours(sum(known) if known else None)}{more}", flush=True)
    return [run for run in runs if run not in refused]


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
                    found = pool.submit(verdict, run.config, topology, cache).result()
                yield run, found
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
    planned = shapes(programs, chip) if on_gpus(topology) else compiled(programs, chip, cache)
    seconds = {}
    for program, each, reason in planned:
        if reason is not None:
            return Verdict(reason=f"{program.name}: {reason}")
        seconds[program.name] = each
    total = run_seconds(programs, seconds)
    return Verdict(chip_hours=total and total * chips(mesh, chip) / 3600)


def compiled(programs, chip, cache):
    """Compile the programs for TPUs.

    Yields:
        (Program, likely seconds of its calls in a step, None), or (Program, None, why it does not
        fit).
    """
    from launch.planning.compiled import compile_programs
    from launch.planning.roofline import seconds_of
    from launch.planning.summary import fits, held_at_once

    for program, found in compile_programs(programs, cache):
        if fits(program, found, chip):
            _, likely = seconds_of(program, found, chip).of_step(program)
            yield program, likely, None
        else:
            yield program, None, found.refusal or _too_much(held_at_once(program, found), chip)


def shapes(programs, chip):
    """Estimate what needs no compiler, for GPUs.

    Yields:
        (Program, seconds of its calls in a step at a GPU's peak, None or why it does not fit).
    """
    from deepseek_jax.costs.program import argument_bytes

    for program in programs:
        held = program.beside_bytes + (0 if program.needs else argument_bytes(program.arguments))
        seconds = program.runs * program.flops / program.mesh.size / chip.flops_per_second
        yield program, seconds, _too_much(held, chip) if held > chip.hbm_bytes else None


def _too_much(size, chip):
    return f"{size / GIB:.2f} GiB, of {chip.hbm_bytes / GIB:.2f} GiB of a {chip.device_kind}"


def run_seconds(programs, seconds: dict):
    """Return the seconds of all updates of a run, with their rollouts; None without updates.

    Evaluations and data do not count.

    Args:
        seconds: {program's name: seconds of its calls in a step}.
    """
    from deepseek_jax.costs.program import GENERATION, SYNC, TRAINING

    total = 0.0
    for update in programs:
        if update.model is None:
            continue
        owner, _, kind = update.name.rpartition(": ")
        group = [
            p for p in programs if p.name.rpartition(": ")[0] == owner and p.name != "pretrain"
        ]
        reinforced = {p.part for p in group} == {TRAINING, GENERATION, SYNC}
        # A step of reinforcement consists of its rollout, its scoring and its updates
        called = group if reinforced and kind != "pretrain" else [update]
        total += sum(seconds[program.name] for program in called) * update.settings.num_steps
    return total or None


def chips(mesh, chip):
    """Return how many chips the devices of a mesh are."""
    devices = {each.device_kind: each.devices for each in CHIPS.values()}
    return mesh.size / devices.get(chip.device_kind, 1)
