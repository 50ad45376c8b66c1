"""The runs of a sweep as one table: a metric against the fields that were swept.

Runs that differ only in their seed are one row, with the 95% interval of their mean. The metric is
a score that the runs measured on held-out data, see recipes.results.Results.scores, or a number of
metrics.jsonl.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.training.metrics import read_phases

SEED = "seed"
COMPLETE = "complete"
# Prefix of PHASE/NAME for a metric that is the last number of metrics.jsonl, not a held-out score
LOGGED = "logged/"
CAPTION = "95% interval: of the mean over seeds; of one run over its held-out data"


# (mean, low, high); low and high are None for a number without an interval
Value = tuple[float, float | None, float | None]


class SweepRun(NamedTuple):
    """One run of a sweep.

    Attributes:
        overrides: {dotted field: value}.
        status: For a reader; COMPLETE if the run is complete.
        value: Of the metric; None for a run without one.
    """

    overrides: dict
    status: str
    value: Value | None


class Group(NamedTuple):
    """The runs with the same fields, apart from their seed."""

    fields: dict
    runs: list[SweepRun]

    def values(self) -> dict[int | None, Value]:
        """Return {seed: value} of the complete runs: others are not as far."""
        return {
            run.overrides.get(SEED): run.value
            for run in self.runs
            if run.status == COMPLETE and run.value is not None
        }

    def interval(self) -> Value | None:
        """Return (mean, low, high) over seeds, or of a single run; None without a value."""
        values = list(self.values().values())
        if len(values) < 2:
            return values[0] if values else None
        return mean_interval([mean for mean, _, _ in values])


def grouped(runs: list[SweepRun]) -> list[Group]:
    """Group the runs by their fields, in order of first appearance."""
    groups: dict[str, Group] = {}
    for run in runs:
        fields = {name: value for name, value in run.overrides.items() if name != SEED}
        # A value may be a list, which cannot be a key
        groups.setdefault(repr(sorted(fields.items())), Group(fields, [])).runs.append(run)
    return list(groups.values())


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """Return {dotted field: its last part, or all of it if two fields end alike}."""
    ends = Counter(name.rpartition(".")[2] for name in fields)
    return {n: end if ends[end := n.rpartition(".")[2]] == 1 else n for n in fields}


def headline(measured: list[dict]) -> str | None:
    """Return the metric to show if none was chosen: the last measurement's first score, or None.

    Args:
        measured: For each run {measurement: {score: [mean, low, high]}}.
    """
    last = (list(of.values())[-1] for of in measured if of)
    return next((name for scores in last for name in scores), None)


def value_of(measured: dict, workdir: Path, metric: str | None) -> Value | None:
    """Return (mean, low, high) of a run's metric, None if the run has none.

    Args:
        measured: {measurement: {score: [mean, low, high]}}.
        metric: SCORE, of the last measurement that has it; MEASUREMENT/SCORE; or LOGGED and
            PHASE/NAME, where low and high are None.
    """
    if metric is not None and metric.startswith(LOGGED):
        phase, _, name = metric.removeprefix(LOGGED).rpartition("/")
        records = read_phases(workdir / "metrics.jsonl").get(phase, [])
        values = [r[name] for r in records if r.get(name) is not None]
        return (values[-1], None, None) if values else None
    for measurement in reversed(measured):
        for name, score in measured[measurement].items():
            if metric in (name, f"{measurement}/{name}"):
                return tuple(score)
    return None


def metric_names(measured: dict, workdir: Path) -> list[str]:
    """List the full names of all metrics of a run, in order."""
    names = [f"{measurement}/{name}" for measurement, of in measured.items() for name in of]
    for phase, records in read_phases(workdir / "metrics.jsonl").items():
        logged = dict.fromkeys(name for record in records for name in record)
        names += [f"{LOGGED}{phase}/{name}" for name in logged if name not in ("step", "phase")]
    return names


def progress(workdir: Path) -> str:
    """Return the phase and step of a run's last line, for a reader; "" without one."""
    phases = read_phases(workdir / "metrics.jsonl")
    if not phases:
        return ""
    last = list(phases.values())[-1][-1]
    return f"{last['phase']} step {last['step']}"


def title_of(metric: str | None) -> str:
    """Return the name of a metric for the table and the plot."""
    return "metric" if metric is None else metric.replace("/", " ").replace("_", " ")


def sweep_table(runs: list[SweepRun], metric: str | None) -> Table:
    """Build a rich Table with a row for each group.

    Args:
        metric: As in value_of.
    """
    groups = grouped(runs)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    if any(run.value is not None for run in runs):
        table.caption = CAPTION
    fields = list(dict.fromkeys(name for group in groups for name in group.fields))
    for name in short_names(fields).values():
        table.add_column(name)
    table.add_column("runs")
    for name in (title_of(metric), "95% interval", "each run"):
        table.add_column(name, justify="right")
    for group in groups:
        mean, low, high = group.interval() or (None, None, None)
        statuses = Counter(run.status for run in group.runs)
        table.add_row(
            *(str(group.fields.get(name, "")) for name in fields),
            "\n".join(f"{n} {status}" for status, n in statuses.items()),
            "" if mean is None else f"{mean:.4g}",
            "" if low is None else _between(low, high),
            "\n".join(_each(run.value, len(group.runs) == 1) for run in group.runs),
        )
    return table


def _each(value, is_alone):
    """Write a run's value, with its interval unless the row has it."""
    if value is None:
        return "-"
    mean, low, high = value
    return f"{mean:.4g}" if low is None or is_alone else f"{mean:.4g} ({_between(low, high)})"


def _between(low, high):
    return f"{low:.4g} to {high:.4g}"
