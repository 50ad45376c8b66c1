"""The data for the page of a run, collected from folders written by hand."""

import json

from deepseek_jax.reports.run_page import collect, write_report
from deepseek_jax.training.lineage import content_hash

TITLES = {"base": "base", "tuned": "Dev1", "reinforced": "R1"}
SCORES = {"pass@1": [0.5, 0.4, 0.6]}
COMPLETION = dict(
    text="9", total=1.0, parts={}, advantage=0.0, right=True, languages={"en": 0.0}, length=1
)
GROUP = dict(kind="sum", language="en", prompt="4 + 5?", answer="9", completions=[COMPLETION])


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def stage(workdir, name, own, parent=None, *, complete=True, measured=None):
    """A stage with hash `own`. measured: the hash of the stage that its scores belong to."""
    inputs = {"settings": "5e77"} | ({"parent": content_hash(parent)} if parent else {})
    write(
        workdir / name / "stage.json", dict(stage=name, hash=own, inputs=inputs, complete=complete)
    )
    if complete:
        folder, of = workdir / "measured" / name, {"parent": content_hash(measured or own)}
        write(folder / "stage.json", dict(stage=name, hash="0", inputs=of, complete=True))
        samples = {"puzzles": [GROUP], "requests": []}
        write(folder / "scores.json", {"scores": SCORES, "samples": samples})


def states(found):
    return {s["name"]: s["state"] for s in found["stages"]}


def test_a_run_that_goes_on_tells_of_what_it_has(tmp_path):
    """Oracle: by hand."""
    assert states(collect(tmp_path, TITLES)) == dict.fromkeys(TITLES, "not begun")
    stage(tmp_path, "base", "b")
    stage(tmp_path, "tuned", "t", "b", complete=False)
    lines = [dict(step=0, phase="tuned", loss=2.0), dict(step=0, phase="pretrain", loss=3.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = collect(tmp_path, TITLES)
    assert states(found) == {"base": "complete", "tuned": "not finished", "reinforced": "not begun"}
    assert found["stages"][1]["inputs"] == {
        "settings": ("5e77", None),
        "parent": (content_hash("b"), "base"),
    }
    assert found["scores"] == {"base": SCORES}
    assert found["samples"] == [{"stage": "base"} | GROUP]
    assert list(found["curves"].items()) == [("pretrain", lines[1:]), ("Dev1 (tuned)", lines[:1])]
    write_report(tmp_path, "title", TITLES, {"pass@1": ".1%"}, {"pass@1": "pass@1"})
    assert "Dev1 <small>tuned</small>" in (tmp_path / "report.html").read_text()


def test_what_came_from_an_earlier_version_is_outdated_and_so_is_what_follows(tmp_path):
    """Oracle: by hand: the base was made anew, and nothing else since."""
    for name, own, parent in (("base", "b2", None), ("tuned", "t", "b1"), ("reinforced", "r", "t")):
        stage(tmp_path, name, own, parent)
    found = collect(tmp_path, TITLES)
    assert states(found) == {"base": "complete", "tuned": "outdated", "reinforced": "outdated"}
    assert list(found["scores"]) == ["base"] and len(found["samples"]) == 1


def test_scores_of_another_version_of_a_stage_are_left_out(tmp_path):
    """Oracle: by hand."""
    stage(tmp_path, "base", "b2", measured="b1")
    found = collect(tmp_path, TITLES)
    assert states(found)["base"] == "complete" and found["scores"] == {} and found["samples"] == []
