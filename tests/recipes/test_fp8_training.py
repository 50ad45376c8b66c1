"""FP8 against bfloat16 over a whole small run."""

import json

import jax
import numpy as np
import pytest

from configs.pretrain_small import get_config
from deepseek_jax.recipes import pretrain
from tests.recipes.small import one_device

STEPS = 300
RATE = 3e-4  # at three times this, bfloat16 and float32 drift 0.3% apart themselves


def final_losses(workdir, fp8):
    """The mean next-token loss of the last 50 of 300 updates, and the held-out loss, both in nats."""
    config = get_config(f"fp8={fp8}")
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
    mesh = one_device()
    with jax.set_mesh(mesh):
        pretrain.run(config, mesh, workdir, lambda: False)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == STEPS and all(r["nonfinite"] == 0 for r in records)
    last = np.mean([r["next_token_loss"] for r in records[-50:]])
    return last, json.loads((workdir / "stage_1_after.json").read_text())[0]


@pytest.mark.slow
def test_300_updates_in_fp8_stay_within_a_quarter_percent(tmp_path):
    """Oracle: the run in bfloat16, same data; 0.25% is the published gap (arXiv:2412.19437, 3.3)."""
    bf16, fp8 = (final_losses(tmp_path / str(fp8), fp8) for fp8 in (False, True))
    print("last 50 updates, held out: bfloat16", bf16, "FP8", fp8)
    np.testing.assert_allclose(fp8, bf16, rtol=0.0025)
