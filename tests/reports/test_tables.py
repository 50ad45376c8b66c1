import io
import json

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from deepseek_jax.reports.tables import (
    before_after_table,
    fates_table,
    plot_curves,
    sample_panel,
    stages_table,
)


def rendered(renderable):
    """Plain text at 80 columns: a usual terminal, and what rich takes a file to have."""
    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def write_metrics(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


BEFORE = {
    "sampled": {"accuracy": (0.262, 0.212, 0.319), "reward": (0.4, 0.3, 0.5)},
    "greedy": {"accuracy": (0.387, 0.33, 0.448), "reward": (0.6, 0.5, 0.7)},
}
AFTER = {
    "sampled": {"accuracy": (0.941, 0.905, 0.964), "reward": (1.9, 1.8, 2.0)},
    "greedy": {"accuracy": (1.0, 0.985, 1.0), "reward": (2.0, 2.0, 2.0)},
}


def test_the_table_puts_before_and_after_side_by_side():
    """Oracle: the row written by hand: sampled before and after, then greedy, at 80 columns."""
    text = rendered(before_after_table({"accuracy": ".1%", "reward": ".2f"}, BEFORE, AFTER))
    rows = [line.split() for line in text.splitlines()]
    assert ["accuracy", "26.2%", "94.1%", "38.7%", "100.0%"] in rows
    assert ["reward", "0.40", "1.90", "0.60", "2.00"] in rows


def test_the_table_shows_each_interval_whole():
    """Oracle: by hand, on one line each even at 80 columns."""
    text = rendered(before_after_table({"accuracy": ".1%"}, BEFORE, AFTER))
    for interval in ("21.2% to 31.9%", "90.5% to 96.4%", "33.0% to 44.8%", "98.5% to 100.0%"):
        assert interval in text and max(map(len, text.splitlines())) <= 80


def test_the_stages_stand_below_each_other_with_what_each_was_measured_by():
    """Oracle: the rows written by hand; what a stage lacks is blank."""
    stages = {"base": {"a": (0.5, 0.25, 0.75)}, "R1": {"a": (1, 0.9, 1), "b": (23.04, 20, 26)}}
    text = rendered(stages_table(stages, {"a": ".1%", "b": ".1f"}, {"a": "pass@1", "b": "length"}))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["stage", "pass@1", "length"]
    assert ["base", "50.0%"] in rows and ["R1", "100.0%", "23.0"] in rows
    assert ["25.0%", "to", "75.0%"] in rows and [
        "90.0%",
        "to",
        "100.0%",
        "20.0",
        "to",
        "26.0",
    ] in rows


def sample(before, after):
    return dict(
        prompt="What is 2 + 3?",
        columns={"answer": "5"},
        before=before,
        after=after,
        before_reward=0,
        after_reward=2,
        before_right=False,
        after_right=True,
    )


def test_the_samples_stand_with_their_rewards():
    """Oracle: the lines by hand."""
    lines = rendered(sample_panel([sample("6", "2 + 3 = 5")])).splitlines()
    words = [line.strip("│ ").split() for line in lines]
    assert ["prompt", "What", "is", "2", "+", "3?"] in words
    assert ["answer", "5"] in words
    assert ["before", "6", "reward", "0"] in words
    assert ["after", "2", "+", "3", "=", "5", "reward", "2"] in words


@pytest.mark.parametrize("terminal, no_color", [(True, None), (True, "1"), (False, None)])
def test_a_terminal_shows_right_answers_in_green_and_wrong_ones_in_red(
    monkeypatch, terminal, no_color
):
    """Oracle: by hand, the codes of ANSI; none in a pipe, none with NO_COLOR."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    console.print(sample_panel([sample("6", "2 + 3 = 5")]))
    text = console.file.getvalue()
    is_coloured = terminal and no_color is None
    assert ("\x1b[31m6" in text, "\x1b[32m2 + 3 = 5" in text) == (is_coloured, is_coloured)
    assert is_coloured or "\x1b[3" not in text


def test_a_completion_cannot_command_the_terminal():
    """Oracle: no control character but newlines comes out; markup is shown as written."""
    text = rendered(sample_panel([sample("\x1b[2J\x07\t[/bold][red]", "a\nb")]))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert r"\x1b[2J\x07\t[/bold][red]" in text


def test_a_completion_of_megabytes_is_shown_by_its_ends():
    """Oracle: by hand: the first and the last characters, and few of the others."""
    text = rendered(sample_panel([sample("6", "a " + "9 " * 5_000_000 + "z")]))
    assert len(text) < 40_000 and "a 9 9" in text and "9 9 z" in text and "left out" in text


def test_the_plot_has_a_panel_for_each_curve_that_was_logged(tmp_path):
    """Oracle: pixel widths: three panels are three times one; other phases are not drawn."""
    steps = [{"step": s, "phase": "grpo", "reward": s / 10, "accuracy": None} for s in range(3)]
    write_metrics(tmp_path / "one.jsonl", [{"step": 0, "phase": "grpo", "reward": 0.5}])
    write_metrics(
        tmp_path / "three.jsonl",
        [r | {"completion_length": 9.5} for r in steps]
        + [{"step": 0, "phase": "pretrain", "loss": 3.0}],
    )
    widths = {}
    for name in ("one", "three"):
        plot_curves(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png", phase="grpo")
        widths[name] = imread(tmp_path / f"{name}.png").shape[1]
    assert widths["three"] == 3 * widths["one"]


def test_a_higher_curve_is_drawn_where_it_differs(tmp_path):
    """Oracle: two files that differ in one value give different pictures; equal ones the same."""
    pictures = []
    for i, last in enumerate((1.0, 1.0, 0.0)):
        records = [
            {"step": s, "phase": "grpo", "reward": r} for s, r in enumerate((0.0, 0.5, last))
        ]
        write_metrics(tmp_path / f"{i}.jsonl", records)
        plot_curves(tmp_path / f"{i}.jsonl", tmp_path / f"{i}.png", phase="grpo")
        pictures.append(imread(tmp_path / f"{i}.png"))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_a_phase_without_curves_is_an_error(tmp_path):
    """Oracle: the message names the phase and the curves."""
    write_metrics(tmp_path / "m.jsonl", [{"step": 0, "phase": "pretrain", "loss": 3.0}])
    curves = "reward, accuracy, completion_length, turns, tool_calls"
    with pytest.raises(ValueError, match=f"none of {curves} for phase 'grpo'"):
        plot_curves(tmp_path / "m.jsonl", tmp_path / "m.png", phase="grpo")


def test_the_table_of_fates_has_a_row_a_fate_that_occurs_and_what_was_kept_last():
    """Oracle: a table by hand."""
    fates = {"source": {"kept": 3, "repeated": 1}, "back_translation": {"unread": 0, "empty": 10}}
    table = fates_table("all", fates)
    assert [column.header for column in table.columns] == ["", "source", "back\ntranslation", "all"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["repeated", "empty", "kept"]
    assert cells[1:] == [["1", "0", "3"], ["0", "10", "0"], ["1", "10", "3"]]
