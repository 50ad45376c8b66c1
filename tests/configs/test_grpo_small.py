"""The main job as the README has it, start to end, and the second one's start on real weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def trained(workdir, config, *overrides):
    """(before, after) of a run of launch/train.py, way -> score -> mean, compiled as for a user."""
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        ROOT / "launch" / "train.py",
        f"--config={ROOT / 'configs' / config}",
    ]
    done = subprocess.run(
        [*command, f"--workdir={workdir}", *overrides],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for name in ("before", "after"):
        measured = json.loads((workdir / name / "scores.json").read_text())
        scores = {way: told["scores"] for way, told in measured.items()}
        found.append({way: {n: score[0] for n, score in s.items()} for way, s in scores.items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_main_job_learns_to_reason(seed, tmp_path):
    """Oracle: the bars set for it: sampled accuracy doubles and ends above 85%, greedy above 95%, with right
    reasoning above 80%, and completions grow.
    """
    before, after = trained(tmp_path / "run", f"grpo_small.py:seed={seed}")
    sampled = after["sampled"]
    assert sampled["accuracy"] > max(0.85, 2 * before["sampled"]["accuracy"])
    assert after["greedy"]["accuracy"] > 0.95 and sampled["correct_reasoning"] > 0.8
    assert sampled["completion_length"] > before["sampled"]["completion_length"]
    for name in ("metrics.jsonl", "curves.png", "tensorboard/grpo", "grpo/params/config.json"):
        assert (tmp_path / "run" / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize("questions", ["its own", "of a file"])
def test_real_weights_are_reinforced_on_words(questions, tmp_path):
    """Oracle: one step, of a chat template's prompts, whose sampler and trainer agree to 1e-4 nats
    on average: two programs in float32.
    """
    small = [
        "num_steps=1",
        "optimizer.warmup_steps=0",
        "group_size=4",
        "data.num_held_out=2",
        "rollout.max_completion_length=16",
    ]
    if questions == "of a file":
        lines = [{"question": f"What is {k} + 1?", "answer": f"#### {k + 1}"} for k in range(8)]
        (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
        small.append(f"data.path={tmp_path / 'sums.jsonl'}")
    trained(tmp_path / "run", "grpo_smollm2.py", *(f"--config.{field}" for field in small))
    (record,) = read_metrics(tmp_path / "run" / "metrics.jsonl", "grpo")
    assert record["tokens"] > 0 and record["reward_errors"] == 0 and record["nonfinite"] == 0
    assert record["sampler_gap_mean"] < 1e-4
