"""The table of a reward model's or a judge's scores."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.training.remembered import before_and_after


def reward_model_table(title: str, folder: Path) -> Table:
    """A rich Table of folder's before.json and after.json: dicts of [mean, low, high], numbers and None."""
    before, after = before_and_after(folder)
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False)
    table.add_column("score")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name in after:
        table.add_row(name.replace("_", " "), *(_cell(report[name]) for report in (before, after)))
    return table


def _cell(value):
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
