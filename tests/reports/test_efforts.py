"""What is reported of reasoning efforts, against numbers written by hand."""

import io

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from deepseek_jax.reports.efforts import efforts_table, plot_efforts, report_efforts


def measured(lengths, right):
    """effort -> a result of evaluate_both with these means, each -+ 0.1 of itself."""
    found = {}
    for effort, length, share in zip(("50", "75", "100"), lengths, right, strict=True):
        scores = {"completion_length": length, "accuracy": share}
        scores = {name: [x, 0.9 * x, 1.1 * x] for name, x in scores.items()}
        sample = {"prompt": f"2 + {effort}?", "completion": f"at {effort}", "reward": 1.0}
        samples = [sample | {"columns": {}, "right": True}]
        found[effort] = dict.fromkeys(("sampled", "greedy"), {"scores": scores, "samples": samples})
    return found


BEFORE, AFTER = measured([10, 10, 10], [0.4, 0.4, 0.4]), measured([3, 8, 20], [0.5, 0.7, 0.9])


def test_the_table_has_a_row_for_each_effort_before_and_after():
    """Oracle: cells by hand."""
    table = efforts_table(BEFORE, AFTER)
    efforts, lengths, right, *_ = [list(column.cells) for column in table.columns]
    assert efforts == [f"{b} {when}" for b in (50, 75, 100) for when in ("before", "after")]
    assert lengths[1] == "3.0\n2.7 to 3.3" and lengths[4] == "10.0\n9.0 to 11.0"
    assert right[5] == "90.0%\n81.0% to 99.0%"
    headers = [column.header for column in table.columns]
    assert headers[1:] == [
        "length\nsampled",
        "accuracy\nsampled",
        "length\ngreedy",
        "accuracy\ngreedy",
    ]


def test_the_plot_shows_the_numbers_of_each_effort(tmp_path):
    """Oracle: equal numbers give equal pictures, and one other number another picture."""
    pictures = []
    for right in (0.9, 0.9, 0.8):
        plot_efforts(BEFORE, measured([3, 8, 20], [0.5, 0.7, right]), tmp_path / "x.png")
        pictures.append(imread(tmp_path / "x.png"))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_a_report_has_the_table_samples_of_each_effort_and_the_plot(tmp_path):
    """Oracle: by hand, and a PNG's first bytes."""
    console = Console(width=80, file=io.StringIO())
    report_efforts(console, BEFORE, AFTER, tmp_path / "efforts.png")
    said = console.file.getvalue()
    for effort in AFTER:
        assert f"asked with effort {effort}" in said and f"at {effort}" in said
    assert "50 after" in said and "90.0%" in said
    assert (tmp_path / "efforts.png").read_bytes().startswith(b"\x89PNG")
