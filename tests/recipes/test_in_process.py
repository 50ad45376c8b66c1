"""ds.train: an experiment in this process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import deepseek_jax as ds
from deepseek_jax import recipes
from deepseek_jax.errors import UnusableRewards
from tests import warm
from tests.recipes.small import CLOCKS, small_config

ROOT = Path(__file__).resolve().parents[2]

COUNTING = '''
"""Counts its steps in checkpoints of a phase, and measures how many it has taken."""
import dataclasses, json, signal
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.settings import unhashed

@dataclasses.dataclass(frozen=True)
class Counting:
    recipe: str
    steps: int
    interrupted: bool = False
    xla_flags: str = unhashed("")

SETTINGS = Counting

class Counts(Stage):
    def measurements(self):
        return {"steps": "steps.json"}

    def run(self, context):
        settings, taken = self.settings, context.stage_folder / "checkpoints"
        taken.mkdir(exist_ok=True)
        (taken / "7.orbax-checkpoint-tmp").mkdir(exist_ok=True)
        for step in range(len(list(taken.glob("?"))), settings.steps):
            (taken / str(step + 1)).mkdir()
            found = dict(taken=[step + 1, None, None], note="not a score")
            (context.folder / "steps.json").write_text(json.dumps(found))
            if settings.interrupted and step == 2:
                signal.raise_signal(signal.SIGINT)
            if context.run.should_stop():
                raise SystemExit(75)

def stages(s):
    return [Counts("grpo", s)]

def page(results):
    return run_page(results, "Counting")

def report(results):
    pass
'''


def taken(folder):
    """The steps of a run that have a checkpoint."""
    return sorted(path.name for path in (folder / "grpo" / "checkpoints").glob("?"))


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """The config of a recipe that only counts, and a work folder."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "counting.py").write_text(COUNTING)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path / "plugins")])
    # Python's own, which a shell in the background replaces
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield ConfigDict(dict(recipe="counting", steps=5)), tmp_path / "runs"
    signal.signal(signal.SIGINT, before)


def test_it_stops_after_steps_resumes_and_says_what_was_measured(counting):
    """Oracle: by hand: two steps of five, then three more; the measurement as the recipe left it. A dict is a
    config too, and a complete run is not run again.
    """
    config, work = counting
    assert ds.train(config, work / "one", stop_after=2) == (
        False,
        {"steps": {"taken": [2, None, None]}},
    )
    whole = (True, {"steps": {"taken": [5, None, None]}})
    assert ds.train(config.to_dict(), str(work / "one")) == whole
    assert taken(work / "one") == list("12345")
    (work / "one" / "grpo" / "checkpoints" / "5").rmdir()
    assert ds.train(config, work / "one") == whole and taken(work / "one") == list("1234")


def test_ctrl_c_saves_and_is_raised(counting):
    """Oracle: by hand: SIGINT in the third step; afterwards Python's own handler is back."""
    config, work = counting
    config.interrupted = True
    with pytest.raises(KeyboardInterrupt, match="the same call resumes it"):
        ds.train(config, work / "one")
    assert taken(work / "one") == list("123")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ds.train(config, work / "one").complete


def test_ctrl_c_at_the_end_of_a_run_is_raised_too(counting, monkeypatch):
    """Oracle: by hand: SIGINT in the report of a complete run: what follows the call does not begin."""
    config, work = counting
    recipe = recipes.experiment.find_recipe("counting")
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "report", lambda results: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            ds.train(config, work / "one")
    assert taken(work / "one") == list("12345") and ds.train(config, work / "one").complete


MISTAKES = [
    (dict(step=3), "one", "config.step.* did you mean steps"),
    (
        dict(recipe="countng"),
        "one",
        "config.recipe='countng' is not a recipe; did you mean counting",
    ),
    (
        dict(steps="runs/sft_small/params"),
        "one",
        "config.steps=.*make it with: python launch/train.py ",
    ),
    ({}, "s3://b/x", "^folder: s3://b/x is neither a local path"),
    ({}, "file", "^folder=.*file cannot be a directory: .*; give another folder$"),
    (None, "one", "^config=None must be a ConfigDict, or a dict of its fields"),
]


@pytest.mark.parametrize("fields, folder, words", MISTAKES)
def test_a_mistake_is_a_value_error_and_leaves_nothing(
    counting, fields, folder, words, monkeypatch
):
    """Oracle: by hand: the field or the argument, and no folder."""
    config, work = counting
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "file").touch()
    with pytest.raises(ValueError, match=words):
        ds.train(None if fields is None else config.to_dict() | fields, folder)
    assert [path.name for path in work.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_stop_at_the_last_step_of_a_phase_comes_one_step_later(tmp_path, capsys):
    """Oracle: by hand: the base has five steps, which complete it; GRPO is left after its first."""
    assert not ds.train(small_config(prompts_per_step=8), tmp_path / "one", stop_after=5).complete
    assert "grpo: asked to stop; saved at step 1 of " in capsys.readouterr().out


def test_a_stop_after_no_step_is_refused(counting):
    """Oracle: by hand; no folder."""
    with pytest.raises(ValueError, match="^stop_after=0 must be at least 1, or None"):
        ds.train(counting[0], counting[1] / "one", stop_after=0)
    assert not counting[1].exists()


def test_a_fault_and_a_folder_of_other_inputs_are_raised(counting, monkeypatch):
    """Oracle: the fault itself; the stage and the field that differ, and `folder` where the programs say
    --workdir.
    """
    config, work = counting
    recipe = recipes.experiment.find_recipe("counting")

    def run(stage, context):
        raise UnusableRewards("nothing could be scored")

    with monkeypatch.context() as patched:
        patched.setattr(recipe.Counts, "run", run)
        with pytest.raises(UnusableRewards, match="nothing could be scored"):
            ds.train(config, work / "one")
    ds.train(config, work / "one")
    config.steps = 6
    words = r"(?s)grpo \(complete\): settings\n.*config.steps: 5 -> 6\n.*give another folder$"
    with pytest.raises(ValueError, match=words):
        ds.train(config, work / "one")
    assert taken(work / "one") == list("12345")


def test_what_has_changed_is_run_anew_where_that_is_asked_for(counting):
    """Oracle: by hand: the steps of the second config alone; and the words of the refusal, which name the
    argument.
    """
    config, work = counting
    ds.train(config, work / "one")
    config.steps = 3
    with pytest.raises(ValueError, match="give redo=True to run these stages anew"):
        ds.train(config, work / "one")
    whole = (True, {"steps": {"taken": [3, None, None]}})
    assert ds.train(config, work / "one", redo=True) == whole
    assert taken(work / "one") == list("123")
    assert json.loads((work / "one" / "config.json").read_text())["steps"] == 3


FRESH = """
import os, sys
import deepseek_jax as ds
from deepseek_jax import recipes
recipes.__path__.append(sys.argv[1])
config = dict(recipe="counting", steps=1, xla_flags="--xla_cpu_max_isa=AVX2")
assert ds.train(config, sys.argv[2]).complete
print(os.environ["XLA_FLAGS"])
config["xla_flags"] = "--xla_no_such=1"
print(ds.train(config, sys.argv[2]).complete, os.environ["XLA_FLAGS"])
"""


def test_the_compilers_flags_of_a_config_are_set_while_jax_has_no_devices(counting):
    """Oracle: the environment of a fresh interpreter: those of the config before its own; a second run, when
    JAX has its devices, changes nothing.
    """
    plugins, work = counting[1].parent / "plugins", counting[1] / "one"
    env = os.environ | {"XLA_FLAGS": "--xla_cpu_parallel_codegen_split_count=1"}
    done = warm.run("-c", FRESH, plugins, work, env=env)
    said = [line for line in done.stdout.splitlines() if "isa" in line]
    flags = "--xla_cpu_max_isa=AVX2 --xla_cpu_parallel_codegen_split_count=1"
    assert said == [flags, f"True {flags}"], (done.stdout, done.stderr)


@pytest.mark.slow
def test_it_trains_what_the_program_trains(tmp_path):
    """Oracle: launch/train.py of the same config in another process: the same numbers in every line of the
    metrics, bit for bit, and the scores of its files.
    """
    config = small_config(prompts_per_step=8)
    (tmp_path / "small.py").write_text(
        "from tests.recipes.small import small_config\n"
        "def get_config():\n    return small_config(prompts_per_step=8)\n"
    )
    command = ["launch/train.py", f"--config={tmp_path}/small.py", f"--workdir={tmp_path}/theirs"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    trained = ds.train(config, tmp_path / "ours")
    theirs, ours = (lines(tmp_path / name) for name in ("theirs", "ours"))
    assert ours == theirs and len(ours) > 3
    after = json.loads((tmp_path / "theirs" / "after" / "scores.json").read_text())["sampled"][
        "scores"
    ]
    assert trained.complete and len(after) > 2
    assert after.items() <= trained.scores["after"].items()


def lines(folder):
    """The lines of metrics.jsonl without what a clock says."""
    read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith(CLOCKS)} for line in read]
