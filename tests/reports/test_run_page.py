"""What the page of a run has from its files: folders written by hand."""

import json

from deepseek_jax.reports.page import Page
from deepseek_jax.reports.run_page import is_measured, lineage, training_samples, write_report
from deepseek_jax.training.lineage import content_hash

TITLES = {"base": "base", "tuned": "Dev1", "reinforced": "R1"}


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def stage(workdir, name, own, parent=None, *, complete=True, measured=None):
    """A stage with hash `own`. measured: the hash of the stage that its measurement belongs to."""
    inputs = {"settings": "5e77", "texts": "7e87"} | (
        {"parent": content_hash(parent)} if parent else {}
    )
    write(
        workdir / name / "stage.json", dict(stage=name, hash=own, inputs=inputs, complete=complete)
    )
    if complete:
        record = dict(stage=name, hash="0", complete=True)
        record["inputs"] = {"parent": content_hash(measured or own)}
        write(workdir / "measured" / name / "stage.json", record)


def states(workdir):
    return {s["name"]: s["state"] for s in lineage(workdir, TITLES)}


def measured(workdir):
    """The stages of which a measurement is there, as they are now."""
    shown = lineage(workdir, TITLES)
    return [s["name"] for s in shown if is_measured(workdir, f"measured/{s['name']}", s)]


def test_a_run_that_goes_on_tells_of_what_it_has(tmp_path):
    """Oracle: by hand."""
    assert states(tmp_path) == dict.fromkeys(TITLES, "not begun") and measured(tmp_path) == []
    stage(tmp_path, "base", "b")
    stage(tmp_path, "tuned", "t", "b", complete=False)
    shown = lineage(tmp_path, TITLES)
    assert states(tmp_path) == {
        "base": "complete",
        "tuned": "not finished",
        "reinforced": "not begun",
    }
    assert shown[1]["inputs"] == {
        "settings": ("5e77", None),
        "texts": ("7e87", None),
        "parent": (content_hash("b"), "base"),
    }
    assert measured(tmp_path) == ["base"]


def test_what_came_from_an_earlier_version_is_outdated_and_so_is_what_follows(tmp_path):
    """Oracle: by hand: the base was made anew, and nothing else since."""
    for name, own, parent in (("base", "b2", None), ("tuned", "t", "b1"), ("reinforced", "r", "t")):
        stage(tmp_path, name, own, parent)
    assert states(tmp_path) == {"base": "complete", "tuned": "outdated", "reinforced": "outdated"}
    assert measured(tmp_path) == ["base"]


def test_a_measurement_of_another_version_of_a_stage_is_none(tmp_path):
    """Oracle: by hand."""
    stage(tmp_path, "base", "b2", measured="b1")
    assert states(tmp_path)["base"] == "complete" and measured(tmp_path) == []


def test_phases_without_a_heading_are_those_of_a_base(tmp_path):
    """Oracle: by hand: the order of the headings, and folded what has none."""
    lines = [dict(step=0, phase=phase, loss=2.0) for phase in ("pretrain", "second", "first")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(tmp_path, Page("title"), {"first": "One", "second": "Two", "later": "Three"})
    page = (tmp_path / "report.html").read_text()
    places = [page.index(text) for text in ("<h3>One", "<h3>Two", "before that: pretrain<")]
    assert places == sorted(places) and "Three" not in page


def group(step, prompt="2 + 3?", phase="grpo"):
    completion = dict(text="5", reward=None, parts={"own": 0.5}, advantage=0.1, length=2)
    return dict(step=step, phase=phase, prompt=prompt, answer="5", completions=[completion])


def test_completions_of_the_first_the_middle_and_the_last_logged_step_are_shown(tmp_path):
    """Oracle: by hand, of five steps of one phase and one of another; a line that a kill cut is skipped."""
    assert training_samples(tmp_path / "completions.jsonl", {}) == []
    groups = [group(step, f"{i} + 3?") for step in (0, 5, 10, 15, 19) for i in range(6)]
    lines = [json.dumps(line) + "\n" for line in (*groups, group(3, phase="other"))]
    (tmp_path / "completions.jsonl").write_text("".join(lines) + lines[0][:20])
    shown = training_samples(tmp_path / "completions.jsonl", {"grpo": "R1"})
    assert [(g["phase"], g["step"]) for g in shown] == [
        *[("R1", step) for step in (0, 10, 19) for _ in range(4)],
        ("other", 3),
    ]
    assert shown[0]["prompt"] == "0 + 3?" and shown[0]["stage"] == "training"
    assert shown[0]["completions"][0]["total"] is None
    write_report(tmp_path, Page("title"), {})
    assert "0 + 3?" in (tmp_path / "report.html").read_text()
