"""The table and the plot of a sweep, from files as runs leave them."""

import io
import json

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from deepseek_jax.reports.sweep import (
    COMPLETE,
    SweepRun,
    grouped,
    headline,
    metric_names,
    progress,
    short_names,
    sweep_table,
    value_of,
)
from deepseek_jax.reports.sweep_plot import plot_sweep

RATE, RANK = "optimizer.learning_rate", "adapter.rank"
MEASURED = {
    "before": {"loss": [3.0, 2.5, 3.5], "accuracy": [0.1, 0.0, 0.2]},
    "after": {"loss": [2.0, 1.5, 2.5], "accuracy": [0.3, 0.2, 0.4]},
}


def write_metrics(workdir, *records):
    workdir.mkdir()
    lines = [json.dumps(dict(step=step, phase=phase) | more) for step, phase, more in records]
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return workdir


def shown(runs, metric="loss"):
    console = Console(width=120, file=io.StringIO())
    console.print(sweep_table(runs, metric))
    return console.file.getvalue()


def seeds(values, status=COMPLETE, **fields):
    """Runs of several seeds, each value with an interval of 0.1 around it."""
    scores = [(value, value - 0.1, value + 0.1) for value in values]
    return [SweepRun(fields | {"seed": s}, status, score) for s, score in enumerate(scores)]


def test_seeds_are_one_row_with_the_interval_of_their_mean():
    """Oracle: by hand: mean 2, std 1, and t of 2 degrees of freedom 4.303: 2 -+ 4.303 / sqrt(3). A single run
    has the interval that it measured.
    """
    runs = seeds([1.0, 2.0, 3.0], **{RATE: 0.1}) + seeds([5.0], **{RATE: 0.2})
    first, second, third, last = shown(runs).splitlines()[2:6]
    assert first.split() == "0.1 3 complete 2 -0.4841 to 4.484 1 (0.9 to 1.1)".split()
    assert second.split() == "2 (1.9 to 2.1)".split()
    assert third.split() == "3 (2.9 to 3.1)".split()
    assert last.split() == "0.2 1 complete 5 4.9 to 5.1 5".split()


def test_a_run_that_is_not_complete_counts_in_no_mean():
    """Oracle: the mean of the one that is complete."""
    runs = seeds([1.0], **{RATE: 0.1}) + [
        SweepRun({RATE: 0.1, "seed": 1}, "failed (2)", (9.0, None, None))
    ]
    (group,) = grouped(runs)
    assert group.interval() == (1.0, 0.9, 1.1)
    assert "1 complete" in shown(runs) and "1 failed (2)" in shown(runs)


def test_a_metric_is_a_score_of_the_last_measurement_that_has_it(tmp_path):
    """Oracle: by hand."""
    assert headline([{}, MEASURED]) == "loss" and headline([{}]) is None
    assert value_of(MEASURED, tmp_path, "loss") == (2.0, 1.5, 2.5)
    assert value_of(MEASURED, tmp_path, "before/accuracy") == (0.1, 0.0, 0.2)
    assert value_of(MEASURED, tmp_path, "los") is None and value_of({}, tmp_path, None) is None


def test_a_logged_number_is_a_metric_by_its_full_name_alone(tmp_path):
    """Oracle: by hand: the last number that is not null, which has no interval; "loss" is no logged one."""
    begun = write_metrics(tmp_path / "a", (0, "pretrain", dict(loss=3.0)))
    ended = write_metrics(
        tmp_path / "b",
        (0, "pretrain", dict(loss=3.0)),
        (0, "sft", dict(loss=2.0)),
        (5, "sft", dict(loss=1.5)),
        (6, "sft", dict(loss=None)),
    )
    assert value_of({}, ended, "logged/sft/loss") == (1.5, None, None)
    assert value_of({}, begun, "logged/sft/loss") is None
    assert value_of({}, ended, "loss") is None and value_of({}, ended, "sft/loss") is None
    names = ["before/loss", "before/accuracy", "after/loss", "after/accuracy"]
    logged = ["logged/pretrain/loss", "logged/sft/loss"]
    assert metric_names(MEASURED, ended) == names + logged
    assert progress(ended) == "sft step 6" and progress(tmp_path / "none") == ""


def test_fields_are_named_by_their_last_part_where_that_is_enough():
    """Oracle: by hand."""
    assert short_names([RATE, RANK]) == {RATE: "learning_rate", RANK: "rank"}
    assert short_names(["a.rank", "b.rank"]) == {"a.rank": "a.rank", "b.rank": "b.rank"}


def test_each_field_has_a_panel_with_means_and_intervals(tmp_path, monkeypatch):
    """Oracle: what is drawn, by hand: in the rate's panel a line for each rank, on a logarithmic axis."""
    drawn, intervals, scales = [], [], []
    plot, vlines, scale = Axes.plot, Axes.vlines, Axes.set_xscale
    note = lambda self, *a, **k: (drawn.append(a[:2]), plot(self, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(Axes, "plot", note)
    note = lambda self, *a, **k: (intervals.append(a), vlines(self, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(Axes, "vlines", note)
    note = lambda self, *a, **k: (scales.append(a), scale(self, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(Axes, "set_xscale", note)
    runs = []
    for rank in (4, 8):
        for rate in (0.1, 0.001):
            runs += seeds([rank + rate, rank + rate + 2], **{RATE: rate, RANK: rank})
    plot_sweep(runs, "loss", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    lines = [points for points in drawn if len(points[0]) == 2 and points[0][0] != points[0][1]]
    assert lines[:2] == [([0.001, 0.1], [5.001, 5.1]), ([0.001, 0.1], [9.001, 9.1])]
    assert lines[2:] == [([4, 8], [5.1, 9.1]), ([4, 8], [5.001, 9.001])]
    assert len(intervals) == 8 and scales == [("log",)]


def test_the_plot_has_the_interval_that_a_single_run_measured(tmp_path, monkeypatch):
    """Oracle: what is drawn, by hand: a point and a line for each rate; of seeds alone, for each seed."""
    intervals, vlines = [], Axes.vlines
    note = lambda self, *a, **k: (intervals.append(a), vlines(self, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(Axes, "vlines", note)
    runs = [SweepRun({RATE: r}, COMPLETE, (r, r - 1, r + 1)) for r in (2, 3)]
    plot_sweep(runs, "loss", tmp_path / "rates.png")
    assert intervals == [(2, 1, 3), (3, 2, 4)]
    plot_sweep(seeds([1.0, 2.0]), "loss", tmp_path / "seeds.png")
    assert intervals[2:] == [("0", 0.9, 1.1), ("1", 1.9, 2.1)]


@pytest.mark.parametrize("fields", [{}, {"loss.kind": "grpo"}, {"mesh": [1, 2]}])
def test_seeds_alone_and_fields_that_are_no_numbers_are_drawn_too(tmp_path, fields):
    """Oracle: a PNG."""
    plot_sweep(seeds([1.0, 2.0], **fields), "loss", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
