"""The runs of a sweep as one plot: a metric against each field that was swept.

Runs that differ only in their seed are one point, with the 95% interval of their mean. A single run
has the interval of its held-out data.

Tests: tests/reports/test_sweep.py.
"""

import math
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deepseek_jax.reports.sweep import SEED, Group, SweepRun, Value, grouped, short_names, title_of

# A field has a logarithmic axis from this ratio of its largest to its smallest value
LOG_RANGE = 20
# A plot with more lines than this has no legend
MOST_LINES = 8


def plot_sweep(runs: list[SweepRun], metric: str, path: Path):
    """Draw the metric of complete runs against each swept field, a panel for each, as a PNG.

    A line joins groups that agree in all other fields. A sweep over seeds only is drawn against the
    seed.
    """
    groups = [group for group in grouped(runs) if group.values()]
    fields = list(dict.fromkeys(name for group in groups for name in group.fields))
    figure = Figure(figsize=(max(4.8, 4.2 * len(fields)), 3.4), layout="constrained")
    # This canvas needs no display and does not touch pyplot's global state
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(fields)), squeeze=False, sharey=True)[0]
    names = short_names(fields) or {SEED: SEED}
    for axes, field in zip(panels, names, strict=True):
        if fields:
            _draw_field(axes, groups, field)
        else:
            _draw_seeds(axes, groups[0])
        axes.set(xlabel=names[field])
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=title_of(metric))
    figure.savefig(path, dpi=100)


def _draw_field(axes, groups, field):
    """Draw one panel: the mean of the seeds with its interval, and each seed as a small cross."""
    values = list(
        {repr(g.fields[field]): g.fields[field] for g in groups if field in g.fields}.values()
    )
    numeric = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if numeric and min(values) > 0 and max(values) >= LOG_RANGE * min(values):
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    lines: dict[str, list[tuple[float, Group, Value]]] = {}
    for group in groups:
        if field in group.fields and (interval := group.interval()) is not None:
            others = {n: v for n, v in group.fields.items() if n != field}
            x = group.fields[field] if numeric else values.index(group.fields[field])
            label = ", ".join(f"{n.rpartition('.')[2]}={v}" for n, v in others.items())
            lines.setdefault(label, []).append((x, group, interval))
    for label, points in lines.items():
        points.sort(key=lambda point: point[0])
        xs, means = [x for x, _, _ in points], [mean for _, _, (mean, _, _) in points]
        (line,) = axes.plot(xs, means, marker="o", label=label)
        for x, group, (_, low, high) in points:
            if low is not None:
                axes.vlines(x, low, high, color=line.get_color())
            means = [mean for mean, _, _ in group.values().values()]
            if len(means) > 1:
                axes.plot([x] * len(means), means, "x", color="grey")
    if 1 < len(lines) <= MOST_LINES:
        axes.legend(fontsize="small")


def _draw_seeds(axes, group):
    """Draw each seed with its own interval, and their mean with its interval."""
    values = group.values()
    seeds = [str(seed) for seed in values]
    axes.plot(seeds, [mean for mean, _, _ in values.values()], "o")
    for seed, (_, low, high) in zip(seeds, values.values(), strict=True):
        if low is not None:
            axes.vlines(seed, low, high)
    if len(values) > 1:
        mean, low, high = group.interval()
        axes.axhline(mean)
        axes.axhspan(low, high, alpha=0.2)
