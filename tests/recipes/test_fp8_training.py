"""FP8 against bfloat16 over whole small runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.pretrain_small import get_config
from deepseek_jax.recipes.pretrain import run as pretrain
from tests.recipes.outcome import scores_in
from tests.recipes.small import one_device, run_recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS = 300
RATE = 3e-4  # at three times this, bfloat16 and float32 drift 0.3% apart themselves


def final_losses(workdir, seed, fp8):
    """The mean next-token loss of the last 50 of 300 updates, and the held-out loss, both in nats."""
    config = get_config(f"seed={seed},fp8={fp8}")
    config.model.dtype = "bfloat16"
    phases = [
        dict(kind="linear", steps=30, to=RATE),
        dict(kind="constant", steps=170),
        dict(kind="cosine", steps=100, to=RATE / 10),
    ]
    stage = config.stages.stage_1
    stage.update(dict(num_steps=STEPS, batch_size=((0, 16),), sequence_length=64))
    stage.update(dict(log_every=1, eval_every=1000, save_every=STEPS))
    stage.update(dict(bias_update_speed=((0, 0.01),), mtp_weight=((0, 0.3),)))
    stage.optimizer.phases = phases
    del config.stages.stage_2_long
    config.data.update(dict(sources=("arithmetic",), weights=(1.0,), eval_batches=16))
    config.data.num_held_out = 1000
    mesh = one_device()
    with jax.set_mesh(mesh):
        run_recipe(pretrain, config, workdir, mesh=mesh)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == STEPS and all(r["nonfinite"] == 0 for r in records)
    last = np.mean([r["next_token_loss"] for r in records[-50:]])
    return last, scores_in(workdir, "stage_1_after")[0]


ALONE = """
import json, sys
from pathlib import Path
from tests.recipes.test_fp8_training import final_losses
workdir, seed, fp8 = sys.argv[1:]
print(json.dumps(final_losses(Path(workdir), int(seed), fp8 == "True")))
"""


def final_losses_at_full_speed(workdir, seed, fp8):
    """final_losses in a process that compiles for speed, as a user's does: tests' own way takes longer."""
    command = [sys.executable, "-c", ALONE, str(workdir), str(seed), str(fp8)]
    environment = os.environ | dict(XLA_FLAGS="")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_300_updates_in_fp8_stay_within_a_quarter_percent(tmp_path):
    """Oracle: the runs in bfloat16, same data; 0.25% is the published gap (arXiv:2412.19437, 3.3). Means of
    four seeds: the gap of one was -0.3% to 0.7% over six, 0.04% in the mean with a standard error of 0.15%,
    as a run's path is chaotic: bfloat16 compiled in two ways, or against float32, differs by 0.3% too.
    """

    def final(fp8):
        runs = [final_losses_at_full_speed(tmp_path / f"{s}_{fp8}", s, fp8) for s in range(4)]
        print(f"last 50 updates and held out, of each seed, {fp8=}:", runs)
        return np.mean(runs, axis=0)

    np.testing.assert_allclose(final(fp8=True), final(fp8=False), rtol=0.0025)
