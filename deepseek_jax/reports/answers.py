"""A policy's answers to held-out prompts before and after training, as tables and samples."""

import numpy as np
from rich.console import Console

from deepseek_jax.parallel.processes import first_process
from deepseek_jax.reports.page import form_of
from deepseek_jax.reports.tables import before_after_table, sample_panel
from deepseek_jax.training.completions import shown_text

# Number of samples printed for each measurement; the page shows more
PRINTED = 3


def print_table(console: Console, before: dict, after: dict) -> None:
    """Print the scores of two measurements side by side.

    Args:
        before, after: Way of decoding -> result of held_out.evaluate.
    """
    scores = [{way: measured["scores"] for way, measured in m.items()} for m in (before, after)]
    every = [of for measured in scores for of in measured.values()]
    names = [name for name in every[-1] if all(name in of for of in every)]
    forms = {name: form_of(name, [end for of in every for end in of[name]]) for name in names}
    console.print(before_after_table(forms, *scores))
    for way, result in after.items():
        counts = before[way]["unscored"], result["unscored"]
        if any(counts):
            console.print(
                f"{way}: {counts[0]} answers before and {counts[1]} after training had no score: they count "
                "as wrong, and no reward has them"
            )


def print_samples(console: Console, before: dict, after: dict) -> None:
    """Print the first completions of two results of evaluate side by side."""
    pairs = zip(before["samples"][:PRINTED], after["samples"][:PRINTED], strict=True)
    samples = [
        {
            "prompt": old["prompt"],
            "columns": new["columns"],
            **_sample("before", old),
            **_sample("after", new),
        }
        for old, new in pairs
    ]
    console.print(sample_panel(samples))


def make_console(width: int | None = None) -> Console:
    """Make a console that only process 0 writes to.

    Args:
        width: In columns; None for the terminal's.
    """
    return Console(quiet=not first_process(), width=width)


def _sample(when, sample):
    reward = np.nan if sample["reward"] is None else sample["reward"]
    return {
        when: shown_text(sample, "completion"),
        f"{when}_reward": reward,
        f"{when}_right": sample["right"],
    }
