"""What the page of a run has from its files: folders written by hand."""

import json

from deepseek_jax.reports.page import Page
from deepseek_jax.reports.run_page import (
    STEPS,
    is_measured,
    lineage,
    training_samples,
    write_report,
)
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


def group(step, prompt="2 + 3?", phase="grpo", advantage=0.1):
    completion = dict(text="5", reward=None, parts={"own": 0.5}, advantage=advantage, length=2)
    return dict(step=step, phase=phase, prompt=prompt, answer="5", completions=[completion])


def write_completions(workdir, groups, rest=""):
    """Write the file of completions, and return it."""
    path = workdir / "completions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in groups) + rest)
    return path


def test_completions_of_the_first_the_middle_and_the_last_logged_step_are_what_was_rewarded(
    tmp_path,
):
    """Oracle: by hand, of five steps of one phase and one of another; a line that a kill cut is skipped; all
    groups are there, and two of a step have a place.
    """
    assert training_samples(tmp_path / "completions.jsonl", {}, {}) == []
    groups = [group(step, f"{i} + 3?") for step in (0, 5, 10, 15, 19) for i in range(6)]
    path = write_completions(tmp_path, [*groups, group(3, phase="other")], '{"step": 0, "pha')
    metrics = {"grpo": [dict(step=10, reward=0.512, all_equal_share=0.25), dict(step=19)]}
    shown = training_samples(path, {"grpo": "R1"}, metrics)
    assert len(shown) == 31 and {g["phase"] for g in shown} == {"R1", "other"}
    assert [(g["phase"], g["step"], g["place"], g["remark"]) for g in shown if "place" in g] == [
        *[("R1", 0, "first step", "")] * 2,
        *[("R1", 10, "middle step", "mean reward 0.51 · 25% of groups without a signal")] * 2,
        *[("R1", 19, "last step", "")] * 2,
        ("other", 3, "first step", ""),
    ]
    assert shown[0]["prompt"] == "0 + 3?" and shown[0]["stage"] == "training"
    assert shown[0]["completions"][0]["total"] is None
    write_report(tmp_path, Page("title"), {})
    assert "0 + 3?" in (tmp_path / "report.html").read_text()


def test_groups_with_a_signal_are_the_ones_that_are_shown(tmp_path):
    """Oracle: by hand: of three groups of one step, the one whose rewards differ is the first of two."""
    advantages = {"equal": 0.0, "also equal": 0.0, "differs": 0.7}
    path = write_completions(tmp_path, [group(0, p, advantage=a) for p, a in advantages.items()])
    shown = training_samples(path, {}, {})
    assert [(g["prompt"], "place" in g) for g in shown] == [
        ("differs", True),
        ("equal", True),
        ("also equal", False),
    ]


def test_the_steps_of_a_long_run_are_spread_over_it(tmp_path):
    """Oracle: by hand: of 1000 logged steps about 100, the first, the middle and the last among them, and
    no gap of more than 11 steps.
    """
    path = write_completions(tmp_path, [group(step) for step in range(1000)])
    steps = [g["step"] for g in training_samples(path, {}, {})]
    assert len(steps) in (STEPS, STEPS + 1) and {0, 499, 999} < set(steps)
    assert steps == sorted(steps)
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) <= 11
