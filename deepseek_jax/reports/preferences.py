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
    """Return the page with held-out responses, and which of them the model prefers.

    The responses that the last measurement judges worst come first.

    Args:
        measured: "before" and "after", if they are there -> a measurement.
    """
    samples = {when: held_out_samples(measurement) for when, measurement in measured.items()}
    records = [
        dict(zip(samples, sample_pair, strict=True))
        for sample_pair in zip(*samples.values(), strict=False)
    ]
    records.sort(key=lambda record: _margin(list(record.values())[-1]))
    note = f"{len(records)} held-out prompts, those on which the reward model is most wrong first."
    return dataclasses.replace(page, pairs=[_pair(record) for record in records], pairs_note=note)


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
    return {
        "prompt": first_record["prompt"],
        "facts": {when: _verdict(record) for when, record in records.items()},
        "right": _margin(list(records.values())[-1]) > 0,
        "sides": sides,
    }


def _margin(sample):
    """Return by how much a sample is judged rightly; at most 0 if it is judged wrongly.

    It is the reward of the chosen response less that of the rejected one. For one labelled
    response it is the reward if the response is safe, else the reward with the other sign.
    """
    rewards = sample["rewards"]
    if len(rewards) == 2:
        return rewards[0] - rewards[1]
    return rewards[0] if sample["responses"][0]["title"] == "safe" else -rewards[0]


def _verdict(sample):
    """Say in words which response is preferred, or what one response is called, and how clearly."""
    margin, titles = _margin(sample), [response["title"] for response in sample["responses"]]
    if len(titles) == 2:
        if margin == 0:
            return "prefers none of them"
        return f"prefers the {titles[margin < 0]} one by {abs(margin):.2f}"
    reward = sample["rewards"][0]
    return f"{'safe' if reward > 0 else 'unsafe'}, {abs(reward):.2f} from the border at 0"


def _cell(value):
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
