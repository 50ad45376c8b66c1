"""launch/sweep.py on a Slurm of two nodes that the tests start."""

import json
import os
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
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a sweep on the cluster. A device for each process: two on two cores are enough."""
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as environment:
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        yield os.environ | environment | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(folder, environment, *args):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / "sweep.py"), *ARGUMENTS, *args],
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
        ours, theirs = load_orbax(ours / "params"), load_orbax(theirs / "params")
        for a, b in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


def leaves(loaded):
    import jax

    return jax.tree.leaves(loaded)
