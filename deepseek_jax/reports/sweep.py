"""The runs of a sweep as one table and one plot: a metric against the fields that were swept.

Runs that differ in their seed alone are one row and one point, with the 95% interval of their mean.
"""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.training.metrics import read_phases

SEED = "seed"
# The metric of a sweep that names none: the first of these that the last phase logged
HEADLINE = "accuracy", "held_out_loss", "reward", "loss"
# A field is drawn on a logarithmic axis where its largest value is so many times the smallest
LOG_RANGE = 20
# More lines than these have no legend
MOST_LINES = 8


class SweepRun(NamedTuple):
    """One run. overrides: {dotted field: value}. status: for a reader. value: of the metric, or None."""

    overrides: dict
    status: str
    value: float | None


class Group(NamedTuple):
    """The runs with the same fields but for their seed. values: {seed: value}, of the runs that have one."""

    fields: dict
    statuses: list
    values: dict

    def interval(self):
        """(mean, low, high) over the seeds; low and high are None for a single one, all for none."""
        numbers = list(self.values.values())
        if len(numbers) < 2:
            return (*numbers, None, None)[:3] if numbers else (None, None, None)
        return mean_interval(numbers)


def grouped(runs: list[SweepRun]):
    """The Groups of the runs, in their order."""
    groups = {}
    for run in runs:
        fields = {name: value for name, value in run.overrides.items() if name != SEED}
        # A value may be a list, which is no key
        group = groups.setdefault(repr(sorted(fields.items())), Group(fields, [], {}))
        group.statuses.append(run.status)
        if run.value is not None:
            group.values[run.overrides.get(SEED)] = run.value
    return list(groups.values())


def choose_metric(workdirs: list[Path], wanted: str | None = None):
    """(phase, name) of the metric of these runs, None while no run has one.

    wanted: NAME, of the last phase that logged it, or PHASE/NAME. Raises ValueError, with what there is, for
    one that no run logged although each run logged some.
    """
    phases = [read_phases(workdir / "metrics.jsonl") for workdir in workdirs]
    # Of the run that has come furthest, for a run that has just begun lacks the later phases
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
    for name in fields:
        table.add_column(name)
    table.add_column("runs")
    title = "metric" if metric is None else " ".join(metric).replace("_", " ")
    for name in (title, "95% interval", "each seed"):
        table.add_column(name, justify="right")
    for group in groups:
        mean, low, high = group.interval()
        each = "  ".join(f"{value:.4g}" for value in group.values.values())
        runs_of = ", ".join(f"{n} {status}" for status, n in Counter(group.statuses).items())
        table.add_row(
            *(str(group.fields.get(name, "")) for name in fields),
            runs_of,
            "" if mean is None else f"{mean:.4g}",
            "" if low is None else f"{low:.4g} to {high:.4g}",
            each if len(group.values) > 1 else "",
        )
    return table


def plot_sweep(runs: list[SweepRun], metric: tuple, path: Path):
    """Draw the metric against each swept field, a panel for each, as a PNG.

    Groups that agree in all other fields are joined by a line. A sweep over seeds alone is drawn against the
    seed.
    """
    groups = [group for group in grouped(runs) if group.values]
    fields = list(dict.fromkeys(name for group in groups for name in group.fields))
    figure = Figure(figsize=(max(4.8, 4.2 * len(fields)), 3.4), layout="constrained")
    # It needs no display, and none of pyplot's global state
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(fields)), squeeze=False, sharey=True)[0]
    for axes, field in zip(panels, fields or [SEED], strict=True):
        if fields:
            _draw_field(axes, groups, field)
        else:
            _draw_seeds(axes, groups[0])
        axes.set(xlabel=field)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=" ".join(metric).replace("_", " "))
    figure.savefig(path, dpi=100)


def _draw_field(axes, groups, field):
    """One panel: the mean with its interval, and each seed as a small point."""
    values = list(
        {repr(g.fields[field]): g.fields[field] for g in groups if field in g.fields}.values()
    )
    numeric = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if numeric and min(values) > 0 and max(values) >= LOG_RANGE * min(values):
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    lines = {}
    for group in groups:
        if field in group.fields:
            others = {n: v for n, v in group.fields.items() if n != field}
            x = group.fields[field] if numeric else values.index(group.fields[field])
            label = ", ".join(f"{n.rpartition('.')[2]}={v}" for n, v in others.items())
            lines.setdefault(label, []).append((x, group))
    for label, points in lines.items():
        points.sort(key=lambda point: point[0])
        xs, means = [x for x, _ in points], [group.interval()[0] for _, group in points]
        (line,) = axes.plot(xs, means, marker="o", label=label)
        for x, group in points:
            _, low, high = group.interval()
            if low is not None:
                axes.vlines(x, low, high, color=line.get_color())
                axes.plot([x] * len(group.values), list(group.values.values()), "x", color="grey")
    if 1 < len(lines) <= MOST_LINES:
        axes.legend(fontsize="small")


def _draw_seeds(axes, group):
    mean, low, high = group.interval()
    names = [str(seed) for seed in group.values]
    axes.plot(names, list(group.values.values()), "o")
    axes.axhline(mean)
    if low is not None:
        axes.axhspan(low, high, alpha=0.2)
