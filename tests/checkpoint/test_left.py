"""What a run leaves in its folder, found by the folder alone."""

import json

import pytest

from deepseek_jax.checkpoint.left import (
    RUN,
    STAGE,
    left_in_run,
    params_of_start,
    record_of,
    run_of,
    stages_left,
)


def made(folder, *names, recipe="sft", stage=None):
    """A run's folder with empty folders in it. stage: that the run is for."""
    for name in ("", *names):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
    (folder / RUN).write_text(json.dumps({"stage": stage}))
    return folder


def begun(run, name, **about):
    """Write the record of a stage: -> its folder."""
    (run / name).mkdir(parents=True, exist_ok=True)
    (run / name / STAGE).write_text(json.dumps({"stage": name} | about))
    return run / name


def test_the_params_or_the_adapter_of_the_stage_that_a_run_is_for_are_found(tmp_path):
    """Oracle: by hand; of a stage its own; a checkpoint's folder, which has params too, stays as it is."""
    whole = made(tmp_path / "a", "base/params", "sft/params", stage="sft")
    assert left_in_run(whole) == whole / "sft/params"
    beside = made(tmp_path / "b", "sft/adapter", "base/params", stage="sft")
    assert left_in_run(beside) == beside / "sft/adapter"
    assert left_in_run(begun(beside, "base")) == beside / "base/params"
    student = made(tmp_path / "c", "students/qwen/params", stage="students/qwen")
    assert left_in_run(student) == student / "students/qwen/params"
    # Without the record of a stage it is any folder
    checkpoint = whole / "base"
    assert left_in_run(checkpoint) == checkpoint
    for text in ('{"model_type": "llama"}', "{", "[]"):
        (whole / "config.json").write_text(text)
        assert left_in_run(whole) == whole
    assert left_in_run(tmp_path / "none") == tmp_path / "none"


@pytest.mark.parametrize("stage", ["sft", None])
def test_a_run_that_has_left_nothing_yet_stays_as_it_is(tmp_path, stage):
    """Oracle: by hand: a stage that is not there, one that has only begun, and no single stage."""
    run = made(tmp_path / "run", "before", stage=stage)
    assert left_in_run(run) == run
    begun(run, "sft")
    assert left_in_run(run) == run and left_in_run(run / "sft") == run / "sft"


def test_a_stage_knows_its_run_and_the_params_that_it_began_from(tmp_path):
    """Oracle: by hand, also of a stage in a group; a stage that began from none has none."""
    run = made(tmp_path / "run")
    base = begun(run, "starts/qwen", start="")
    student = begun(run, "students/qwen", start="starts/qwen")
    assert run_of(base) == run_of(student) == run
    assert params_of_start(student) == run / "starts/qwen/params"
    assert params_of_start(base) is None
    assert record_of(student)["start"] == "starts/qwen" and record_of(run) == {}


def test_several_are_named_and_none_is_taken(tmp_path):
    """Oracle: by hand: stages of R1, students in their group; the arrays of a base are no policy."""
    run = made(tmp_path / "r1", "zero/params", "students/qwen/adapter", "base/params")
    (run / "base/config.json").write_text("{}")
    assert left_in_run(run) == run
    found = f"give what it left there: {run}/students/qwen/adapter, {run}/zero/params"
    assert stages_left(run) == found
    assert stages_left(made(tmp_path / "new", "data")).startswith("it has left no parameters yet")
