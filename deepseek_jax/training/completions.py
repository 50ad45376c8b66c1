"""The completions that a run keeps of its logged steps, in completions.jsonl beside metrics.jsonl.

A line is an object of a prompt's group, or of as many of its completions as the run keeps:
{"step": int, "phase": str, "prompt": str, "answer": str or null, "completions": [{"text": str,
"reward": float or null, "parts": {name: float or null}, "advantage": float or null, "length": int,
"truncated": bool}]}. length: in tokens. A reward that failed, or that there is none of, is null.
"""

import math
from pathlib import Path

from deepseek_jax.errors import shortened
from deepseek_jax.training.lines import read_lines

FILE = "completions.jsonl"
# Characters of a text
LONGEST_TEXT = 4000
# The columns of the table that boards show
COLUMNS = "prompt answer completion reward rewards advantage length truncated".split()


def read_completions(path: str | Path, phase: str | None = None) -> list[dict]:
    """The lines of a file of completions, in order, or those of one phase; none without a file.

    Raises ValueError as lines.read_lines.
    """
    return [line for line in read_lines(path) if phase is None or line["phase"] == phase]


def completions_line(step: int, phase: str, group: dict):
    """A group, {"prompt", "answer", "completions"}, as its line: long texts are cut, NaN and infinities are
    null.
    """
    completions = [
        {
            "text": shortened(each["text"], LONGEST_TEXT),
            "reward": _finite(each["reward"]),
            "parts": {name: _finite(part) for name, part in each["parts"].items()},
            "advantage": _finite(each["advantage"]),
            "length": int(each["length"]),
            "truncated": bool(each["truncated"]),
        }
        for each in group["completions"]
    ]
    answer = group["answer"]
    return {
        "step": step,
        "phase": phase,
        "prompt": shortened(group["prompt"], LONGEST_TEXT),
        "answer": None if answer is None else shortened(str(answer), LONGEST_TEXT),
        "completions": completions,
    }


def rows_of(lines: list[dict]):
    """The rows of a table of COLUMNS, one a completion. rewards: all of them by name, in one text."""
    return [
        (
            *(line["prompt"], line["answer"], each["text"], each["reward"]),
            ", ".join(f"{n} {p:.4g}" for n, p in each["parts"].items() if p is not None),
            *(each["advantage"], each["length"], each["truncated"]),
        )
        for line in lines
        for each in line["completions"]
    ]


def _finite(number):
    return float(number) if number is not None and math.isfinite(number) else None
