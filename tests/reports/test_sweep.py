"""The table and the plot of a sweep, from files as runs leave them."""

import io
import json

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from deepseek_jax.reports.sweep import (
    COMPLETE,
    SweepRun,
    choose_metric,
    grouped,
    last_value,
    progress,
    short_names,
    sweep_table,
)
from deepseek_jax.reports.sweep_plot import plot_sweep

RATE, RANK = "optimizer.learning_rate", "adapter.rank"


def write_metrics(workdir, *records):
    workdir.mkdir()
    lines = [json.dumps(dict(step=step, phase=phase) | more) for step, phase, more in records]
    (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return workdir


def shown(runs, metric=("sft", "loss")):
    console = Console(width=120, file=io.StringIO())
    console.print(sweep_table(runs, metric))
    return console.file.getvalue()


def seeds(values, status=COMPLETE, **fields):
    return [SweepRun(fields | {"seed": s}, status, v) for s, v in enumerate(values)]


def test_seeds_are_one_row_with_the_interval_of_their_mean():
    """Oracle: by hand: mean 2, std 1, and t of 2 degrees of freedom 4.303: 2 -+ 4.303 / sqrt(3)."""
    runs = seeds([1.0, 2.0, 3.0], **{RATE: 0.1}) + seeds([5.0], **{RATE: 0.2})
    first, second = shown(runs).splitlines()[2:4]
    assert first.split() == "0.1 3 complete 2 -0.4841 to 4.484 1 2 3".split()
    assert second.split() == "0.2 1 complete 5 5".split()


def test_a_run_that_is_not_complete_counts_in_no_mean():
    """Oracle: the mean of the one that is complete."""
    runs = seeds([1.0], **{RATE: 0.1}) + [SweepRun({RATE: 0.1, "seed": 1}, "failed (2)", 9.0)]
    (group,) = grouped(runs)
    assert group.interval() == (1.0, None, None)
    assert "1 complete" in shown(runs) and "1 failed (2)" in shown(runs)


def test_the_metric_is_the_headline_of_the_last_phase_of_the_run_that_is_furthest(tmp_path):
    """Oracle: by hand: held_out_loss is before loss, and "pretrain" is not the last phase."""
    begun = write_metrics(tmp_path / "a", (0, "pretrain", dict(loss=3.0)))
    ended = write_metrics(
        tmp_path / "b",
        (0, "pretrain", dict(loss=3.0, accuracy=0.1)),
        (0, "sft", dict(loss=2.0, held_out_loss=2.5)),
        (5, "sft", dict(loss=None)),
        (6, "sft", dict(loss=1.5)),
    )
    assert choose_metric([begun, ended]) == ("sft", "held_out_loss")
    assert choose_metric([begun, ended], "loss") == ("sft", "loss")
    assert choose_metric([begun, ended], "pretrain/loss") == ("pretrain", "loss")
    assert last_value(ended, ("sft", "held_out_loss")) == 2.5
    assert last_value(ended, ("sft", "loss")) == 1.5 and last_value(begun, ("sft", "loss")) is None
    assert progress(ended) == "sft step 6" and progress(tmp_path / "none") == ""


def test_a_metric_that_nobody_logged_is_refused_with_what_there_is(tmp_path):
    """Oracle: the words a reader needs; not while a run has yet to log anything."""
    workdirs = [write_metrics(tmp_path / "a", (0, "sft", dict(loss=3.0)))]
    with pytest.raises(ValueError, match="--metric=los was logged by no run; there are sft/loss"):
        choose_metric(workdirs, "los")
    assert choose_metric([*workdirs, tmp_path / "not begun"], "los") is None


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
    plot_sweep(runs, ("sft", "loss"), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    lines = [points for points in drawn if len(points[0]) == 2 and points[0][0] != points[0][1]]
    assert lines[:2] == [([0.001, 0.1], [5.001, 5.1]), ([0.001, 0.1], [9.001, 9.1])]
    assert lines[2:] == [([4, 8], [5.1, 9.1]), ([4, 8], [5.001, 9.001])]
    assert len(intervals) == 8 and scales == [("log",)]


@pytest.mark.parametrize("fields", [{}, {"loss.kind": "grpo"}, {"mesh": [1, 2]}])
def test_seeds_alone_and_fields_that_are_no_numbers_are_drawn_too(tmp_path, fields):
    """Oracle: a PNG."""
    plot_sweep(seeds([1.0, 2.0], **fields), ("sft", "loss"), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
