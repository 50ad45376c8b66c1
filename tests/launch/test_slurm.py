"""launch/sweep.py on a Slurm of two nodes that the tests start."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deepseek_jax.checkpoint import load_orbax
from tests.launch.slurm_cluster import slurm_cluster

ROOT = Path(__file__).resolve().parents[2]
# One stage of pre-training, whose first checkpoint is the one that a signal asks for
CONFIG = """
from configs import pretrain_small

def get_config(arg=None):
    config = pretrain_small.get_config("fp8=False")
    sizes = dict(hidden_size=32, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16)
    config.model.update(sizes | dict(intermediate_size=64, moe_intermediate_size=32))
    config.data.update(sources=("arithmetic",), weights=(1.0,), num_documents=300, eval_batches=2)
    stage = dict(config.stages["stage_1"])
    stage.update(batch_size=4, sequence_length=64, num_steps=300, log_every=5, save_every=1000)
    stage.update(optimizer=dict(learning_rate=1e-3), bias_update_speed=0.01, mtp_weight=0.1)
    config.stages = {"only": stage | dict(eval_every=100)}
    return config
"""
SWEEP = """
from configs.sweeps.draws import grid

def sweep(config):
    return grid({"stages.only.optimizer.learning_rate": [1e-3, 3e-3], "seed": range(2)})
"""
# In the place of launch/train.py: it saves when it is asked to stop
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(600)
"""
SWEEP_HERE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from absl import app
from launch import sweep
from launch.engines import local
local.TRAIN = "waits.py"
sweep.define_flags()
app.run(sweep.main, flags_parser=sweep.parse_flags)
"""
ARGUMENTS = ("--config=tiny.py", "--sweep=four.py", "--engine=slurm", "--nodes=2")
NAMES = [
    f"stages.only.optimizer.learning_rate={r},seed={s}" for r in (0.001, 0.003) for s in (0, 1)
]
# Differ between two runs that are equal
TIMES = "seconds", "tokens_per_second", "host_peak_gib"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "four.py").write_text(SWEEP)
    (folder / "waits.py").write_text(WAITS)
    (folder / "sweep_here.py").write_text(SWEEP_HERE)
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a sweep on the cluster. A device for each process: two on two cores are enough."""
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as environment:
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        yield os.environ | environment | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(folder, environment, *args, program=ROOT / "launch" / "sweep.py"):
    return subprocess.Popen(
        [sys.executable, str(program), *ARGUMENTS, *args],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(workdir):
    """The lines of metrics.jsonl without their times."""
    path = workdir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [{n: v for n, v in line.items() if n not in TIMES} for line in lines]


def wait_for_step(workdir, step, sweep):
    until = time.monotonic() + 300
    while not any(line["step"] >= step for line in records(workdir)):
        assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
        time.sleep(0.2)


def jobs(environment):
    """{id: state} of all jobs."""
    listed = ["squeue", "--noheader", "--array", "--format=%i %T"]
    out = subprocess.run(listed, env=environment, capture_output=True, text=True).stdout
    return dict(line.split() for line in out.splitlines())


@pytest.mark.slow
def test_a_preempted_run_is_queued_again_and_ends_as_if_undisturbed(folder, slurm):
    """Oracle: the same four runs of two processes, none of them disturbed: parameters and metrics bit for
    bit. The log of the preempted one says where it stopped and resumed.
    """
    sweep = start(folder, slurm, "--workdir=disturbed", "--max_jobs=2")
    first = folder / "disturbed" / NAMES[0]
    wait_for_step(first, 30, sweep)
    (identity,) = [job for job in jobs(slurm) if job.endswith("_0")]
    subprocess.run(["scancel", "--signal=TERM", f"{identity}.0"], env=slurm, check=True)
    out, _ = sweep.communicate(timeout=900)
    print(out)
    assert sweep.returncode == 0, out
    log = first.with_name(f"{first.name}.log").read_text()
    print(log)
    assert "asked to stop; saved at step" in log and "resuming at step" in log
    assert "on 2 x cpu" in log
    sweep = start(folder, slurm, "--workdir=undisturbed", "--max_jobs=2")
    out, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, out
    for name in NAMES:
        ours, theirs = folder / "disturbed" / name, folder / "undisturbed" / name
        assert records(ours) == records(theirs) and records(ours)[-1]["step"] == 299
        ours, theirs = (load_orbax(run / "only" / "params") for run in (ours, theirs))
        for a, b in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_runs_outlive_their_sweep_and_another_takes_them_over_and_cancels_them(folder, slurm):
    """Oracle: by hand: --max_jobs of the four run; none is submitted twice; those that ran have saved, the
    others never start; Slurm's queue is empty.
    """
    args = ("--workdir=waiting", "--max_jobs=2")
    sweep = start(folder, slurm, *args, program="sweep_here.py")
    logs = [folder / "waiting" / f"{name}.log" for name in NAMES[:2]]
    until = time.monotonic() + 400
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
        time.sleep(0.2)
    assert sorted(jobs(slurm).values()) == ["PENDING"] * 2 + ["RUNNING"] * 2
    sweep.terminate()
    out, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == 75 and "the runs go on" in out
    before = jobs(slurm)
    assert len(before) == 4
    again = start(folder, slurm, *args, program="sweep_here.py")
    for line in again.stdout:
        if f"{NAMES[3]}: is under way, and is taken over" in line:
            break
    assert jobs(slurm) == before
    cancel = start(folder, slurm, *args, "--cancel", program="sweep_here.py")
    out, _ = cancel.communicate(timeout=600)
    assert cancel.returncode == 0 and all(name in out for name in NAMES), out
    again.communicate(timeout=400)
    assert again.returncode == 75 and jobs(slurm) == {}
    statuses = [folder / "waiting" / f"{name}.status" for name in NAMES]
    assert [path.exists() and path.read_text() for path in statuses] == ["75"] * 4
    assert not any(log.exists() for log in (folder / "waiting").glob(f"{NAMES[3]}*.log"))


@pytest.mark.slow
def test_a_single_run_is_queued_again_and_resumes(folder, slurm):
    """Oracle: its log: it resumes at the step at which it saved; each step is logged once."""
    script, workdir = ROOT / "launch" / "train.sbatch", folder / "single"
    # Submitted from the checkout, as its first lines say
    submit = [
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=1",
        f"--output={folder}/job.log",
        script,
    ]
    config = f"--config={folder / 'tiny.py'}"
    environment = slurm | {"PATH": f"{Path(sys.executable).parent}:{slurm['PATH']}"}
    done = subprocess.run(
        [*submit, config, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job, log, until = done.stdout.strip(), folder / "job.log", time.monotonic() + 400
    while not any(line["step"] >= 30 for line in records(workdir)):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    subprocess.run(["scancel", "--signal=TERM", f"{job}.0"], env=slurm, check=True)
    while not (workdir / "drafts" / "scores.json").exists() or job in jobs(slurm):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.5)
    text = log.read_text()
    print(text)
    (saved,) = re.findall(r"asked to stop; saved at step (\d+) of 300", text)
    assert f"resuming at step {saved} of 300" in text and "on 2 x cpu" in text
    assert [line["step"] for line in records(workdir)] == [*range(0, 300, 5), 299]


def leaves(loaded):
    import jax

    return jax.tree.leaves(loaded)
