"""The runs of a sweep as one table: a metric against the fields that were swept.

Runs that differ in their seed alone are one row, with the 95% interval of their mean.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.training.metrics import read_phases

SEED = "seed"
COMPLETE = "complete"
# The metric of a sweep that names none: the first of these that the last phase logged
HEADLINE = "accuracy", "held_out_loss", "kept_share", "reward", "loss"


class SweepRun(NamedTuple):
    """One run. overrides: {dotted field: value}. status: for a reader; COMPLETE where the run is complete.
    value: the last one of the metric, or None.
    """

    overrides: dict
    status: str
    value: float | None


class Group(NamedTuple):
    """The runs with the same fields but for their seed."""

    fields: dict
    runs: list

    def values(self):
        """{seed: value} of the complete runs: others are not as far."""
        complete = [run for run in self.runs if run.status == COMPLETE and run.value is not None]
        return {run.overrides.get(SEED): run.value for run in complete}

    def interval(self):
        """(mean, low, high) over the seeds; low and high are None for a single one, all for none."""
        numbers = list(self.values().values())
        if len(numbers) < 2:
            return (*numbers, None, None)[:3] if numbers else (None, None, None)
        return mean_interval(numbers)


def grouped(runs: list[SweepRun]):
    """The Groups of the runs, in their order."""
    groups = {}
    for run in runs:
        fields = {name: value for name, value in run.overrides.items() if name != SEED}
        # A value may be a list, which is no key
        groups.setdefault(repr(sorted(fields.items())), Group(fields, [])).runs.append(run)
    return list(groups.values())


def short_names(fields):
    """{dotted field: its last part, or all of it where two fields end alike}."""
    ends = Counter(name.rpartition(".")[2] for name in fields)
    return {n: end if ends[end := n.rpartition(".")[2]] == 1 else n for n in fields}


def choose_metric(workdirs: list[Path], wanted: str | None = None):
    """(phase, name) of the metric of these runs, None while no run has one.

    wanted: NAME, of the last phase that logged it, or PHASE/NAME. Raises ValueError, with what there is, for
    one that no run logged although each run logged some.
    """
    phases = [read_phases(workdir / "metrics.jsonl") for workdir in workdirs]
    # The run that has come furthest decides: one that has just begun lacks the later phases
    furthest = max(phases, key=len, default={})
    logged = [(phase, n) for phase, records in furthest.items() for r in records for n in r]
    for name in HEADLINE if wanted is None else [wanted]:
        found = [at for at in logged if name in (at[1], f"{at[0]}/{at[1]}")]
        if wanted is None:
            found = [at for at in found if at[0] == list(furthest)[-1]]
        if found:
            return found[-1]
    if wanted is not None and phases and all(phases):
        names = sorted(
            {f"{phase}/{name}" for phase, name in logged if name not in ("step", "phase")}
        )
        raise ValueError(f"--metric={wanted} was logged by no run; there are {', '.join(names)}")
    return None


def last_value(workdir: Path, metric: tuple | None):
    """The metric's last value in a run's metrics.jsonl; None where it has none yet."""
    if metric is None:
        return None
    records = read_phases(workdir / "metrics.jsonl").get(metric[0], [])
    values = [r[metric[1]] for r in records if r.get(metric[1]) is not None]
    return values[-1] if values else None


def progress(workdir: Path):
    """The phase and the step of a run's last line, for a reader; "" without one."""
    phases = read_phases(workdir / "metrics.jsonl")
    if not phases:
        return ""
    last = list(phases.values())[-1][-1]
    return f"{last['phase']} step {last['step']}"


def sweep_table(runs: list[SweepRun], metric: tuple | None):
    """A rich Table with a row for each group. metric: (phase, name), as from choose_metric."""
    groups = grouped(runs)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    fields = list(dict.fromkeys(name for group in groups for name in group.fields))
    for name in short_names(fields).values():
        table.add_column(name)
    table.add_column("runs")
    title = "metric" if metric is None else " ".join(metric).replace("_", " ")
    for name in (title, "95% interval", "each run"):
        table.add_column(name, justify="right")
    for group in groups:
        mean, low, high = group.interval()
        each = "  ".join("-" if run.value is None else f"{run.value:.4g}" for run in group.runs)
        statuses = Counter(run.status for run in group.runs)
        runs_of = "\n".join(f"{n} {status}" for status, n in statuses.items())
        table.add_row(
            *(str(group.fields.get(name, "")) for name in fields),
            runs_of,
            "" if mean is None else f"{mean:.4g}",
            "" if low is None else f"{low:.4g} to {high:.4g}",
            each,
        )
    return table
