"""What a run leaves in its folder, found by the folder alone."""

import json

from deepseek_jax.checkpoint.left import left_in_run, stages_left


def made(folder, *names, recipe="sft"):
    """A run's folder with empty folders in it."""
    for name in names:
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
    return folder


def test_the_params_or_the_adapter_of_a_run_is_found(tmp_path):
    """Oracle: by hand; a checkpoint's own folder, which has params too, stays as it is."""
    assert left_in_run(made(tmp_path / "a", "params")) == tmp_path / "a/params"
    assert left_in_run(made(tmp_path / "b", "adapter", "base/params")) == tmp_path / "b/adapter"
    whole = made(tmp_path / "c", "params")
    for text in ('{"model_type": "llama"}', "{", "[]"):
        (whole / "config.json").write_text(text)
        assert left_in_run(whole) == whole
    assert left_in_run(tmp_path / "none") == tmp_path / "none"


def test_several_are_named_and_none_is_taken(tmp_path):
    """Oracle: by hand: stages of R1, students in their group; the arrays of a base are no policy."""
    run = made(tmp_path / "r1", "zero/params", "students/qwen/adapter", "base/params")
    (run / "base/config.json").write_text("{}")
    assert left_in_run(run) == run
    found = f"give what it left there: {run}/students/qwen/adapter, {run}/zero/params"
    assert stages_left(run) == found
    assert stages_left(made(tmp_path / "new", "data")).startswith("it has left no parameters yet")
