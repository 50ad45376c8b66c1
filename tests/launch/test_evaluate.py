"""launch/evaluate.py as a user starts it, on a tiny random model."""

import contextlib
import json

import pytest

from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from launch.evaluate import FIELDS, _by_flag
from tests import in_process
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "params"
    save_tiny_model(folder)
    return folder


def launched(folder, *args):
    """The End of one launch from a folder."""
    with contextlib.chdir(folder):
        return in_process.launched("evaluate", *args)


def test_a_checkpoint_is_measured_told_again_and_compared(checkpoint, tmp_path):
    """Oracle: by hand: a random model answers no sum; 2 samples of 4 problems; alike runs are alike."""
    command = f"--checkpoint={checkpoint} --data=arithmetic --samples=2 --num_problems=4".split()
    command += ["--max_completion_length=4", "--slots=8", "--mesh=fsdp=2"]
    status, out, err = launched(tmp_path, *command)
    assert status == 0, err
    (path,) = tmp_path.glob("runs/evaluate_*/results/scores.json")
    problems = json.loads(path.read_text())["problems"]
    assert [len(problem["completions"]) for problem in problems] == [2] * 4
    assert "pass@1" in out and "cons@2" in out and "0.0% to 49.0%" in out
    before = path.read_bytes()
    # The run's folder stands for its file
    for other in (path, path.parents[1]):
        status, out, err = launched(tmp_path, *command, f"--against={other}")
        assert status == 0, err
        assert out.count("no difference shown") == 3 and path.read_bytes() == before


def test_a_mistake_is_one_message_exit_status_two_and_leaves_nothing(tmp_path):
    """Oracle: the words a reader needs, no traceback, no file in a work directory."""
    flags = "--checkpoint=x", "--data=arithmetic", "--mesh=fspd=2"
    status, _, err = launched(tmp_path, *flags)
    assert status == 2 and "did you mean fsdp?" in err and "Traceback" not in err, err
    assert not list(tmp_path.glob("runs/*/*"))


def test_every_setting_is_a_flag():
    """Oracle: the recipe's fields, but its name and the mesh, which has a flag of its own form."""
    assert FIELDS.keys() == EvaluateSettings.__dataclass_fields__.keys() - {"recipe", "mesh"}


def test_a_message_calls_settings_by_their_flags():
    """Oracle: by hand; a file's name and other blocks stay."""
    text = "config.samples=0, config.mesh.fsdp=3; no config.json, nor config.samplesize"
    assert _by_flag(text) == "--samples=0, --mesh.fsdp=3; no config.json, nor config.samplesize"
