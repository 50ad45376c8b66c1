"""launch/sweep.py as a user starts it, each run a launch/train.py of a small recipe beside ours."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from configs.common import without_fusion_emitters
from deepseek_jax.training.metrics import read_metrics
from launch.engines import local
from tests import in_process, warm
from tests.launch.test_train import CONFIG, LAUNCH, RECIPE, ROOT

REPORT = """
def report_sweep(folder, workdirs):
    (folder / "report").write_text(" ".join(path.name for path in workdirs))
"""
SWEEP = """
def sweep(config):
    return [{"seed": 1}, {"seed": 2, "bad": "settings"}, {"seed": config.steps}]
"""
ONE = """
def sweep(config):
    return [{"seed": 1}]
"""
SWEEP_HERE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from deepseek_jax import recipes
from launch import common, sweep
from launch.engines import local
recipes.__path__.append("plugins")
local.TRAIN = "launch_here.py"  # launch/train.py, which finds the small recipe too
if __name__ == "__main__":
    sweep.define_flags()
    common.run_program(sweep.main, sweep.parse_flags)
"""
# Fine-tuning whose last evaluation is the one before its first step
SFT = """
from configs import models, sft_small

def get_config(arg=None):
    c = sft_small.get_config()
    c.model = models.qwen2_tiny(vocab_size=21) | dict(num_hidden_layers=1)
    c.update(num_steps=6, batch_size=8, log_every=2, eval_every=20)
    c.base.update(num_documents=400, batch_size=8, num_steps=5, bias_update_speed=0.0)
    c.base.optimizer.warmup_steps, c.optimizer.warmup_steps = 1, 0
    c.data.num_held_out = 12
    c.answers.update(num_prompts=8, max_completion_length=12, slots=8)
    return c
"""
RATES = """
def sweep(config):
    return [{"optimizer.learning_rate": rate} for rate in (1e-4, 1e-3, 1e-2)]
"""
ARGUMENTS = ("--config=tiny.py:steps=4", "--sweep=three.py", "--workdir=out")


@pytest.fixture
def folder(tmp_path):
    """A directory to start from, with a config, a recipe, a sweep and ways to launch."""
    (tmp_path / "plugins").mkdir()
    # A dry run reads the data on no mesh
    recipe = RECIPE.replace("{dict(context.mesh.shape)['data']}", "anyone")
    (tmp_path / "plugins" / "polling.py").write_text(recipe + REPORT)
    for name, text in {
        "tiny.py": CONFIG,
        "three.py": SWEEP,
        "one.py": ONE,
        # Without torch, which no run needs, and whose import takes as long as all others
        "launch_here.py": f"import sys\nsys.modules['torch'] = None\n{LAUNCH}",
        "sweep_here.py": SWEEP_HERE,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder, *args):
    """A sweep in a process of its own."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return warm.Program("sweep_here.py", *ARGUMENTS, *args, cwd=folder, **pipes)


def swept(folder, *args):
    """The End of a sweep in this process."""
    with in_process.plugged(folder), mock.patch.object(local, "TRAIN", "launch_here.py"):
        return in_process.launched("sweep", *ARGUMENTS, *args)


def test_runs_are_made_once_a_failed_one_is_named_and_the_others_are_reported(folder):
    """Oracle: by hand: the steps that each run counted; exit statuses; files as they were the second time."""
    status, out, err = swept(folder, "--max_jobs=3")
    assert status == 1, err
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
    status, out, _ = swept(folder)
    assert status == 1 and out.count("complete, not run again") == 2
    assert (folder / "out" / "seed=1" / "done0").read_text() == "left as it is"


@pytest.mark.slow
def test_three_learning_rates_have_the_three_losses_that_their_runs_measured(tmp_path):
    """Oracle: each run's own after/scores.json, with its interval. The last logged evaluation is of the base,
    and is the same number three times.
    """
    (tmp_path / "sft.py").write_text(SFT)
    (tmp_path / "rates.py").write_text(RATES)
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "launch" / "sweep.py", "--config=sft.py", "--sweep=rates.py"),
            *("--workdir=out", "--watch"),
        ],
        cwd=tmp_path,
        # One device compiles fastest
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": without_fusion_emitters()},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "out" / "sweep.txt").read_text().splitlines()[2:5]
    folders = [tmp_path / "out" / f"optimizer.learning_rate={r}" for r in (0.0001, 0.001, 0.01)]
    found = [json.loads((f / "after" / "scores.json").read_text())["loss"]["loss"] for f in folders]
    for row, (mean, low, high) in zip(rows, found, strict=True):
        assert f"1 complete {mean:.4g} {low:.4g} to {high:.4g} {mean:.4g}" in " ".join(row.split())
    assert len({mean for mean, _, _ in found}) == 3 and "held out loss" in done.stdout
    # --watch had the first one's row while the others were under way
    live = done.stdout.partition("0.01: started")[0]
    assert re.search(rf"1 complete +{found[0][0]:.4g}", live) and "1 not started" in live
    logged = [read_metrics(f / "metrics.jsonl", "sft") for f in folders]
    assert len({[r["held_out_loss"] for r in of if "held_out_loss" in r][-1] for of in logged}) == 1
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sigterm_is_passed_on_and_asks_to_be_started_again(folder):
    """Oracle: the file that the run saves when asked to stop; exit status 75; no other run is started."""
    sweep = start(folder, "--config.wait=true")
    log, until = folder / "out" / "seed=1.log", time.monotonic() + 400
    while not (log.exists() and "under way" in log.read_text()):
        assert time.monotonic() < until, log.read_text() if log.exists() else sweep.communicate()
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    out, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == 75 and "seed=1: exit status 75" in out
    assert int((folder / "out" / "seed=1" / "saved").read_text()) >= 3
    assert not (folder / "out" / "seed=4").exists()


INTERRUPTED_REPORT = """
def report_sweep(folder, workdirs):
    import os, signal, time
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(300)
"""


@pytest.mark.slow
def test_ctrl_c_while_a_sweep_reports_ends_it(folder):
    """Oracle: the status of a shell for Ctrl-C, and a line: the runs are complete, and stay so."""
    (folder / "plugins" / "polling.py").write_text(RECIPE + INTERRUPTED_REPORT)
    sweep = start(folder, "--sweep=one.py")
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 130 and "seed=1: complete" in out and "Traceback" not in err
    assert out.endswith("Ctrl-C: ended; nothing was under way that could be saved\n")


def state_of(folder, name):
    """The sweep's record of a run: its id, "PID@HOST"; None before it is started."""
    path = folder / "out" / "sweep.json"
    jobs = json.loads(path.read_text()).get("jobs", {}) if path.exists() else {}
    return jobs.get(name, {}).get("id")


def wait_until_under_way(folder, name, sweep):
    """The pid of the run's task once the run has made some steps."""
    log, until = folder / "out" / f"{name}.log", time.monotonic() + 400
    while not (log.exists() and "under way" in log.read_text() and state_of(folder, name)):
        assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
        time.sleep(0.1)
    return int(state_of(folder, name).partition("@")[0])


@pytest.mark.slow
def test_a_preempted_run_starts_again_and_completes(folder):
    """Oracle: SIGTERM to launch/train.py itself, as a machine sends it that is taken away: the run saves, and
    the same process of the engine starts it again to its end.
    """
    sweep = start(folder, "--sweep=one.py", "--config.steps=1000")
    task = wait_until_under_way(folder, "seed=1", sweep)
    children = Path(f"/proc/{task}/task/{task}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 0 and "seed=1: complete" in out, err
    assert (folder / "out" / "seed=1" / "saved").exists()
    assert (folder / "out" / "seed=1" / "done0").read_text().startswith("1000 ")
    assert (folder / "out" / "seed=1.log").read_text().count("under way") == 2


@pytest.mark.slow
def test_a_run_whose_sweep_was_killed_is_taken_over(folder):
    """Oracle: the run's log has one start; SIGTERM to the second sweep reaches the run of the first."""
    args = "--sweep=one.py", "--config.wait=true"
    sweep = start(folder, *args)
    task = wait_until_under_way(folder, "seed=1", sweep)
    sweep.kill()
    sweep.communicate()
    again = start(folder, *args)
    for line in again.stdout:
        if "seed=1: is under way, and is taken over" in line:
            break
    assert state_of(folder, "seed=1").startswith(f"{task}@")
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=400)
    assert again.returncode == 75 and (folder / "out" / "seed=1" / "saved").exists()
    assert (folder / "out" / "seed=1.log").read_text().count("under way") == 1


@pytest.mark.slow
def test_a_second_start_waits_for_the_first_and_a_cancel_ends_both(folder):
    """Oracle: exit status 75 of both, the file that the run saves, and no other run."""
    args = "--config.wait=true", "--watch"
    first = start(folder, *args)
    wait_until_under_way(folder, "seed=1", first)
    second = start(folder, *args)
    for line in second.stdout:
        if "another process follows this sweep" in line:
            break
    cancel = start(folder, *args, "--cancel")
    out, err = cancel.communicate(timeout=400)
    assert cancel.returncode == 0 and "asked to save and end: seed=1" in out, err
    for sweep in (first, second):
        sweep.communicate(timeout=400)
        assert sweep.returncode == 75
    assert int((folder / "out" / "seed=1" / "saved").read_text()) >= 3
    assert not (folder / "out" / "seed=4").exists()


@pytest.mark.slow
def test_only_failed_runs_start_again_where_that_is_asked_for(folder):
    """Oracle: by hand: of three runs one failed; a fourth, which is new, is left."""
    start(folder, "--max_jobs=3").communicate(timeout=400)
    more = SWEEP.replace("[{", "[{'seed': 9}, {")
    (folder / "three.py").write_text(more)
    sweep = start(folder, "--rerun_failed")
    out, err = sweep.communicate(timeout=400)
    assert sweep.returncode == 1 and "1 of 4 runs failed: seed=2,bad=settings" in err
    assert [line for line in out.splitlines() if ": started" in line][0].startswith("seed=2,bad")
    assert out.count(": started") == 1 and "not started" in out


@pytest.mark.slow
def test_a_dry_run_prints_commands_that_a_user_could_type(folder):
    """Oracle: by hand, with this test's train.py; what looks on at the runs is passed on; no folder."""
    observers = "--wandb=sums", "--watchdog_requeue"
    out, err = start(folder, "--sweep=one.py", "--dry_run", *observers).communicate(timeout=400)
    assert out.splitlines()[-1] == (
        "python launch_here.py --config=tiny.py:steps=4 --wandb=sums --watchdog_requeue "
        f"--config.seed=1 --workdir={folder}/out/seed=1"
    )
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "args, words",
    [
        ("--sweep=tiny.py", "--sweep=tiny.py has no function sweep"),
        ("--config.step=5", "--sweep: seed=1: config.step is not a field; did you mean steps?"),
    ],
)
def test_a_mistake_is_one_message_exit_status_two_and_starts_no_run(folder, args, words):
    """Oracle: the words a reader needs, no traceback, no folder of runs."""
    status, _, err = swept(folder, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
    assert not (folder / "out").exists()
