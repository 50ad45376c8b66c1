"""What a reader sees of a sweep, live and at its end, from files as runs leave them."""

import json

import pytest

from launch.engines import RUNNING, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.follow import Sweep
from launch.sweeps.runs import Run
from launch.sweeps.show import Show

CODE = {"rewards.py": "a1b2"}  # of functions that the config names: a complete run's record has it
RUNS = [
    Run(f"rate={r},seed={s}", {"rate": r, "seed": s}, {"seed": s}, code=CODE)
    for r in (1, 2)
    for s in "012"
]


@pytest.fixture
def folder(tmp_path):
    """A sweep whose first run is complete, whose second failed and whose third has saved."""
    folder = Folder(tmp_path, {"config": "/a.py", "sweep": "/b.py"})
    folder.record_start("local")
    folder.submitted(RUNS[:5], list("abcde"))
    for run, status in zip(RUNS, (0, 2, 75), strict=False):
        folder.ended(run.name, status)
    for number, run in enumerate(RUNS[:4]):
        line = dict(step=7, phase="sft", held_out_loss=2.5 + number)
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def measured(run):
    """What each run has measured, which is more than it has logged."""
    return {"after": {"held_out_loss": [1.5, 1.25, 1.75]}}


def test_the_table_says_how_far_each_run_is_and_ends_in_two_files(folder, capsys):
    """Oracle: by hand, one run of each status; the score is of the complete one alone."""
    show = Show(folder, RUNS, measured, pruned={RUNS[5].name})
    show.watch({RUNS[3].name: RUNNING, RUNS[4].name: WAITING})
    live = capsys.readouterr().out
    for words in (
        "1 complete",
        "1 failed (2)",
        "1 stopped",
        "1 running at sft step 7",
        "1 waiting",
    ):
        assert words in live
    assert "1 pruned" in live and "held out loss" in live
    assert live.count("1.5 (1.25 to 1.75)") == 1 and "2.5" not in live
    # Nothing has changed, and WATCH_SECONDS have not passed
    show.watch({RUNS[3].name: RUNNING})
    assert capsys.readouterr().out == ""
    show.last()
    out = capsys.readouterr().out
    text = (folder.path / "sweep.txt").read_text()
    assert text in out and text.splitlines()[2].split()[:4] == ["1", "1", "complete", "1.5"]
    assert text.splitlines()[2].split()[4:7] == ["1.25", "to", "1.75"]
    assert (folder.path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_logged_number_is_shown_where_it_is_asked_for(folder, capsys):
    """Oracle: the lines of metrics.jsonl, those of runs that are not complete too."""
    Show(folder, RUNS, measured, "logged/sft/held_out_loss").last()
    first = (folder.path / "sweep.txt").read_text().splitlines()[2:5]
    assert [line.split()[-1] for line in first] == ["2.5", "3.5", "4.5"]


def test_a_metric_that_no_complete_run_has_is_refused_with_what_there_is(folder):
    """Oracle: the words a reader needs; the table is there all the same."""
    words = "--metric=los is of no complete run; there are after/held_out_loss, logged/sft/held_out_loss"
    with pytest.raises(ValueError, match=words):
        Show(folder, RUNS, measured, "los").last()
    assert "1 failed (2)" in (folder.path / "sweep.txt").read_text()


def test_a_sweep_in_which_no_run_measured_anything_has_a_table_and_no_plot(folder, capsys):
    """Oracle: the statuses alone."""
    Show(folder, RUNS, lambda run: {}).last()
    assert "1 failed (2)" in (folder.path / "sweep.txt").read_text()
    assert not (folder.path / "sweep.png").exists()


class Engine:
    """Runs that end after three looks. most: of those that lived at once."""

    name, max_jobs, takes_all, survives, poll_seconds, settle_seconds = (
        "local",
        1,
        False,
        False,
        0,
        0,
    )
    output = "{log}"

    def __init__(self, folder):
        self.folder, self.looks, self.most = folder, {}, 0

    def submit(self, jobs):
        self.looks |= {job.name: 3 for job in jobs}
        return [job.name for job in jobs]

    def state(self, ids):
        self.most = max(self.most, len(ids))
        for name in ids:
            self.looks[name] -= 1
            if not self.looks[name]:
                (self.folder.path / f"{name}.status").write_text("0")
        return {name: RUNNING for name in ids if self.looks[name]}


@pytest.mark.parametrize("max_jobs, most", [(None, 1), (2, 2), (9, 6)])
def test_so_many_runs_live_at_once_as_max_jobs_allows(tmp_path, max_jobs, most):
    """Oracle: the engine's count; each of six runs is complete."""
    folder = Folder(tmp_path, {"config": "/a.py", "sweep": "/b.py"})
    engine = Engine(folder)
    sweep = Sweep(folder, engine, lambda run: folder.job(run.name, []), None)
    statuses = sweep.run(RUNS, max_jobs, False, lambda: False)
    assert engine.most == most and statuses == dict.fromkeys((run.name for run in RUNS), 0)
