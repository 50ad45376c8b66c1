"""FP8 against bfloat16 over a whole small run."""

import json

import jax
import numpy as np
import pytest

from configs.pretrain_small import get_config
from deepseek_jax.recipes import pretrain
from tests.recipes.small import one_device

STEPS = 300


def final_loss(workdir, fp8):
    """The mean next-token loss of the last 50 of 300 updates, and the held-out loss, both in nats."""
    config = get_config(f"fp8={fp8}")
    config.model.dtype = "bfloat16"
    stage = config.stages["stage_1"]
    phases = [
        dict(kind="linear", steps=30, to=2e-3),
        dict(kind="constant", steps=170),
        dict(kind="cosine", steps=100, to=2e-4),
    ]
    stage.update(
        dict(
            num_steps=STEPS, batch_size=((0, 8),), sequence_length=128, log_every=1, eval_every=1000
        )
    )
    stage.update(dict(save_every=STEPS, bias_update_speed=((0, 0.01),), mtp_weight=((0, 0.3),)))
    stage.optimizer.phases = phases
    del config.stages["stage_2_long"]
    config.data.eval_batches = 16
    mesh = one_device()
    with jax.set_mesh(mesh):
        pretrain.run(config, mesh, workdir, lambda: False)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == STEPS and all(r["nonfinite"] == 0 for r in records)
    last = [r["next_token_loss"] for r in records[-50:]]
    return np.mean(last), json.loads((workdir / "stage_1_after.json").read_text())[0]


@pytest.mark.slow
def test_300_updates_in_fp8_lose_at_most_a_quarter_percent(tmp_path):
    """Oracle: the run in bfloat16, same data; 0.25% is the published gap (arXiv:2412.19437, 3.3)."""
    bf16, fp8 = (final_loss(tmp_path / str(fp8), fp8) for fp8 in (False, True))
    print("last 50 updates, held out: bfloat16", bf16, "FP8", fp8)
    assert fp8[0] < 1.0025 * bf16[0] and fp8[1] < 1.0025 * bf16[1]
