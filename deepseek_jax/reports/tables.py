"""Rich tables of a run, samples before and after training, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deepseek_jax.errors import shortened
from deepseek_jax.evaluation.compare import Comparison
from deepseek_jax.files import whole_file
from deepseek_jax.training.metrics import read_metrics

# The last two are of conversations
CURVES = ("reward", "accuracy", "completion_length", "turns", "tool_calls")
# Whether an answer is right; None if nothing says so -> its style on a terminal
VERDICT_STYLES = {True: "green", False: "red", None: ""}


def before_after_table(rows: dict, before: dict, after: dict) -> Table:
    """Build a rich Table of scores before and after, one row per score.

    Each way of decoding has a column before and a column after. The 95% interval is under each
    mean.

    Args:
        rows: Score -> the format of its numbers: {"accuracy": ".1%", "reward": ".2f"}.
        before: Way of decoding ("sampled", "greedy") -> a `summarise` dict, name -> (mean, low,
            high).
        after: The same after training.
    """
    table = Table(
        title="held-out problems, before and after",
        caption="under each mean its 95% interval",
        # Without vertical rules four intervals fit in 80 columns
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("score")
    for decoding in before:
        table.add_column(f"{decoding}\nbefore", justify="right", no_wrap=True)
        table.add_column(f"{decoding}\nafter", justify="right", no_wrap=True)
    for name, form in rows.items():
        pairs = [(before[decoding][name], after[decoding][name]) for decoding in before]
        cells = [_cell(interval, form) for pair in pairs for interval in pair]
        # Show only the function's name of a reward FILE.py:NAME
        table.add_row(name.rpartition(":")[2].replace("_", " "), *cells)
    return table


def _cell(interval, form):
    mean, low, high = (format(value, form) for value in interval)
    return f"{mean}\n{low} to {high}"


def sample_panel(samples):
    """Build a rich Panel of completions before and after training.

    Control characters in a model's text are printed as escapes, so that they do not control the
    terminal.

    Args:
        samples: Dicts with prompt, before and after (text), before_reward and after_reward (float),
            before_right and after_right (None if nothing says so), and columns, name -> value, of
            the question's line.
    """
    grid = Table.grid(padding=(0, 2))
    for sample in samples:
        grid.add_row(Text("prompt", "dim"), _printable(sample["prompt"]), "")
        for name, value in sample["columns"].items():
            grid.add_row(Text(name, "dim"), _printable(str(value)), "")
        for when in ("before", "after"):
            reward = Text(f"reward {sample[f'{when}_reward']:.4g}", "dim")
            completion = _printable(sample[when])
            completion.stylize(VERDICT_STYLES[sample[f"{when}_right"]])
            grid.add_row(Text(when, "dim"), completion, reward)
        grid.add_row()
    return Panel(grid, title="sample completions", expand=False)


def _printable(text):
    characters = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in shortened(text))
    printable_text = "".join(characters)
    return Text(printable_text.strip("\n"))


def loss_table(losses: dict) -> Table:
    """Build a rich Table of the stages of a pre-training.

    Args:
        losses: Name -> (sequence length, before, after), the last two (mean, low, high) of the
            held-out loss in nats a token.
    """
    table = Table(title="held-out loss, nats a token", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("stage")
    for name in ("tokens a row", "before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, (length, before, after) in losses.items():
        table.add_row(name, str(length), _cell(before, ".3f"), _cell(after, ".3f"))
    return table


def comparison_table(compared: Mapping[str, Mapping[str, Comparison]]) -> Table:
    """Build a rich Table of two runs' differences, one row per score of a task.

    A row has the difference, its interval, its p-value and the verdict.

    Args:
        compared: Task -> {score: Comparison} of shares.
    """
    table = Table(
        title="the same problems, this run less the other",
        caption="better or worse: the 95% interval of the difference excludes 0, and p < 0.05",
        box=SIMPLE_HEAD,
        show_edge=False,
    )
    for name in ("task", "score"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "95% interval", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("this run is")
    for task, scores in compared.items():
        for score, comparison in scores.items():
            mean, low, high = (f"{value:+.1%}" for value in comparison.difference)
            p_value = f"{comparison.p_value:.4f}"
            table.add_row(task, score, mean, f"{low} to {high}", p_value, comparison.verdict)
    return table


def stages_table(
    stages: dict,
    forms: dict,
    names: dict,
    *,
    title: str = "held-out prompts, stage by stage",
    first_column: str = "stage",
) -> Table:
    """Build a rich Table of scores, one row per stage and one column per score.

    The 95% interval is under each mean. A score that a stage lacks is left blank.

    Args:
        stages: Title -> {score: (mean, low, high)}.
        forms: Score -> the format of its numbers.
        names: Score -> the column's title.
    """
    table = Table(
        title=title,
        caption="under each mean its 95% interval",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column(first_column, no_wrap=True)
    for score in forms:
        table.add_column(names[score], justify="right", no_wrap=True)
    for title, scores in stages.items():
        cells = [_cell(scores[s], form) if s in scores else "" for s, form in forms.items()]
        table.add_row(title, *cells)
    return table


def fates_table(title: str, fates: Mapping[str, Mapping[str, int]]) -> Table:
    """Build a rich Table of how many texts met each fate.

    There is one row per fate that occurs, with the fate "kept" last, one column per origin, and a
    column with their sum.

    Args:
        fates: Origin -> {fate: count}.
    """
    table = Table(
        title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    table.add_column("")
    for name in (*fates, "all"):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    names = dict.fromkeys(fate for counts in fates.values() for fate in counts if counts[fate])
    names.pop("kept", None)
    for fate in (*names, "kept"):
        counts = [counts.get(fate, 0) for counts in fates.values()]
        table.add_row(fate, *map(str, (*counts, sum(counts))))
    return table


def plot_curves(
    metrics_path: Path, png_path: Path, *, phase: str, names: Sequence[str] = CURVES
) -> None:
    """Draw the metrics `names` of one phase against its steps, as a PNG.

    A metric that the phase did not log has no panel; a null is a gap in its curve.

    Args:
        metrics_path: A MetricsWriter file.

    Raises:
        ValueError: If the phase logged none of them.
    """
    records = read_metrics(metrics_path, phase)
    requested_names = names
    names = [name for name in requested_names if any(name in record for record in records)]
    if not names:
        raise ValueError(
            f"{metrics_path} holds none of {', '.join(requested_names)} for phase {phase!r}"
        )
    figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
    # This canvas needs no display and does not touch pyplot's global state
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(r["step"], np.nan if r[name] is None else r[name]) for r in records if name in r]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else None)
        axes.set(title=name.replace("_", " "), xlabel=f"{phase} step")
        axes.grid(alpha=0.3)
    with whole_file(png_path) as new_path:
        figure.savefig(new_path, dpi=120, format="png")
