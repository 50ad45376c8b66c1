"""The scores of a reward model or a judge as a table, and what it pays for some preferences on the page."""

import dataclasses
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.reports.page import Page
from deepseek_jax.training.remembered import before_and_after


def reward_model_table(title: str, folder: Path) -> Table:
    """A rich Table of folder's before.json and after.json: dicts of [mean, low, high], numbers and None,
    and of samples, which only the page shows.
    """
    before, after = before_and_after(folder)
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False)
    table.add_column("score")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name in (name for name in after if name != "samples"):
        table.add_row(name.replace("_", " "), *(_cell(report[name]) for report in (before, after)))
    return table


def with_preferences(page: Page, measured: dict[str, dict]) -> Page:
    """The page with the rewards of some held-out responses. measured: "before" and "after", those that are
    there. A judge pays none, and keeps no samples.
    """
    samples = {
        when: found["samples"]["held_out"] for when, found in measured.items() if "samples" in found
    }
    # A response's rewards before and after
    pairs = [
        {
            "prompt": records[0]["prompt"],
            "sides": [
                response
                | {
                    "parts": {
                        f"reward {w}": r["rewards"][i]
                        for w, r in zip(samples, records, strict=True)
                    }
                }
                for i, response in enumerate(records[0]["responses"])
            ],
        }
        for records in zip(*samples.values(), strict=False)
    ]
    return dataclasses.replace(page, pairs=pairs)


def _cell(value):
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
