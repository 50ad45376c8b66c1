"""Tables of a reward model's or judge's scores, and its rewards for preferences on the page.

Slow tests: tests/recipes/reward_model/test_run.py.
"""

import dataclasses
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.reports.page import Page
from deepseek_jax.training.remembered import before_and_after


def reward_model_table(title: str, folder: Path) -> Table:
    """Build a rich Table of a folder's before.json and after.json.

    They are dicts of [mean, low, high], numbers and None, and of samples, which only the page
    shows.
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
    """Return the page with the rewards of some held-out responses.

    Args:
        measured: "before" and "after", if they are there -> a measurement.
    """
    samples = {when: held_out_samples(measurement) for when, measurement in measured.items()}
    pairs = [
        _pair(dict(zip(samples, sample_pair, strict=True)))
        for sample_pair in zip(*samples.values(), strict=False)
    ]
    return dataclasses.replace(page, pairs=pairs)


def held_out_samples(measurement: dict) -> list[dict]:
    """Return the samples of a measurement of a reward model or judge."""
    return measurement["samples"]["held_out"]


def _pair(records):
    """Build one of Page.pairs from "before" and "after" -> a sample of the same responses."""
    first_record = next(iter(records.values()))
    rewards = [
        {f"reward {when}": record["rewards"][i] for when, record in records.items()}
        for i in range(len(first_record["responses"]))
    ]
    sides = [
        response | {"parts": response_rewards}
        for response, response_rewards in zip(first_record["responses"], rewards, strict=True)
    ]
    return {"prompt": first_record["prompt"], "sides": sides}


def _cell(value):
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
