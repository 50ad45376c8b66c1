"""launch/sweep.py as a user starts it, each run a launch/train.py of a small recipe beside ours."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from configs.sweeps.seeds import sweep as seeds
from launch.sweeps.runs import sweep_runs
from tests.launch.test_train import CONFIG, LAUNCH, RECIPE, ROOT


@dataclasses.dataclass(frozen=True)
class Zero:
    num_steps: int
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Small:
    """The settings of a small config."""

    recipe: str = "r1"
    seed: int = 0
    zero: Zero | None = None


REPORT = """
def report_sweep(folder, workdirs):
    (folder / "report").write_text(" ".join(path.name for path in workdirs))
"""
SWEEP = """
def sweep(config):
    return [{"seed": 1}, {"seed": 2, "bad": "settings"}, {"seed": config.steps}]
"""
SWEEP_HERE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from absl import app
from deepseek_jax import recipes
from launch import sweep
from launch.engines import local
recipes.__path__.append("plugins")
local.TRAIN = "launch_here.py"  # launch/train.py, which finds the small recipe too
if __name__ == "__main__":
    sweep.define_flags()
    app.run(sweep.main, flags_parser=sweep.parse_flags)
"""
ARGUMENTS = ("--config=tiny.py:steps=4", "--sweep=three.py", "--workdir=out")


@pytest.fixture
def folder(tmp_path):
    """A directory to start from, with a config, a recipe, a sweep and ways to launch."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "polling.py").write_text(RECIPE + REPORT)
    for name, text in {
        "tiny.py": CONFIG,
        "three.py": SWEEP,
        "launch_here.py": LAUNCH,
        "sweep_here.py": SWEEP_HERE,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder, *args):
    return subprocess.Popen(
        [sys.executable, "sweep_here.py", *ARGUMENTS, *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_runs_are_made_once_a_failed_one_is_named_and_the_others_are_reported(folder):
    """Oracle: by hand: the steps that each run counted; exit statuses; files as they were the second time."""
    sweep = start(folder, "--max_jobs=3")
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, err
    assert "1 of 3 runs failed: seed=2,bad=settings" in err and "Traceback" not in err
    assert "seed=2,bad=settings: exit status 2" in out
    assert "config.rl.lr is not a field" in (folder / "out" / "seed=2,bad=settings.log").read_text()
    for seed in (1, 4):
        assert (folder / "out" / f"seed={seed}" / "done0").read_text().startswith("4 ")
        assert (
            json.loads((folder / "out" / f"seed={seed}" / "config.json").read_text())["seed"]
            == seed
        )
    assert (folder / "out" / "report").read_text() == "seed=1 seed=4"
    (folder / "out" / "seed=1" / "done0").write_text("left as it is")
    sweep = start(folder)
    out, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 1 and out.count("complete, not run again") == 2
    assert (folder / "out" / "seed=1" / "done0").read_text() == "left as it is"


def test_sigterm_is_passed_on_and_asks_to_be_started_again(folder):
    """Oracle: the file that the run saves when asked to stop; exit status 75; no other run is started."""
    sweep = start(folder, "--config.wait=true")
    log, until = folder / "out" / "seed=1.log", time.monotonic() + 60
    while not (log.exists() and "under way" in log.read_text()):
        assert time.monotonic() < until, log.read_text() if log.exists() else sweep.communicate()
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 75 and "seed=1: exit status 75" in out
    assert int((folder / "out" / "seed=1" / "saved").read_text()) >= 3
    assert not (folder / "out" / "seed=4").exists()


def test_three_seeds_of_a_config():
    """Oracle: by hand: the config with another seed, and the given one as it was."""
    config = ConfigDict(dict(recipe="r1", seed=7, zero=dict(num_steps=3)))
    runs = sweep_runs(config, seeds(config), Small)
    assert [run.name for run in runs] == ["seed=0", "seed=1", "seed=2"]
    assert [run.config for run in runs] == [
        json.loads(config.to_json()) | {"seed": s} for s in range(3)
    ]
    (run,) = sweep_runs(config, [{"zero.num_steps": 5, "zero.temperature": 0.5}], Small)
    assert run.config["zero"] == {"num_steps": 5, "temperature": 0.5}
    assert config.zero == ConfigDict(dict(num_steps=3))


def test_mistakes_name_what_is_wrong():
    """Oracle: the words a reader needs."""
    config = ConfigDict(dict(seed=7))
    for overrides, words in (
        ([{"sed": 1}], "--sweep: sed=1: config.sed is not a field; did you mean seed"),
        ([{"seed": "one"}], r"--sweep: seed=one: config.seed='one' \(str\) must be an int"),
        ([{"seed": 1}, {"seed": 1}], "overrides of its own"),
        ([{}], "overrides of its own"),
        ([], "names no runs"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep_runs(config, overrides, Small)


@pytest.mark.parametrize(
    "args, words",
    [
        ("--sweep=nowhere.py", "--sweep=nowhere.py: there is no such file"),
        ("--sweep=tiny.py", "--sweep=tiny.py has no function sweep"),
        ("--config.step=5", "--sweep: seed=1: config.step is not a field; did you mean steps?"),
        ("--config.recipe=poling", "'poling' is not a recipe; did you mean polling?"),
    ],
)
def test_a_mistake_is_one_message_exit_status_two_and_starts_no_run(folder, args, words):
    """Oracle: the words a reader needs, no traceback, no folder of runs."""
    sweep = start(folder, *args.split())
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 2 and words in err and "Traceback" not in err, err
    assert not (folder / "out").exists()
