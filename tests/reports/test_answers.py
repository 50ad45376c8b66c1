"""Samples before and after training on the console."""

import io

from rich.console import Console

from deepseek_jax.reports.answers import print_samples
from tests.training.test_completions import called, result


def sample(completion, **more):
    columns = {"answer": "2825"}
    return (
        dict(prompt="1677 + 1148?", columns=columns, completion=completion, reward=1, right=None)
        | more
    )


def test_a_conversation_has_a_line_for_each_turn_and_call():
    """Oracle: the lines by hand; a single turn is its text."""
    messages = [called("", add={"a": 1677, "b": 1148}), result("add", "2825")]
    messages.append(dict(role="assistant", content="2825"))
    console = Console(width=80, file=io.StringIO())
    before = {"samples": [sample("2583")]}
    print_samples(console, before, {"samples": [sample("add2825", messages=messages)]})
    words = [line.strip("│ ").split() for line in console.file.getvalue().splitlines()]
    assert ["before", "2583", "reward", "1"] in words
    place = words.index(["after", "call", "add(a=1677,", "b=1148)", "reward", "1"])
    assert words[place + 1 : place + 3] == [["tool", "2825"], ["model", "2825"]]
