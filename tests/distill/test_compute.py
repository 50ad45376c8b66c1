"""The compute of a student."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.compute import distilled, reinforced
from deepseek_jax.distill.settings import LossSettings, OnPolicySettings
from tests.tiny import MTP

# Both have modules that predict further tokens: no student trains them
POLICY, TEACHER = MTP, dataclasses.replace(MTP, num_hidden_layers=3)
LENGTH, STEPS, ROWS = 64, 5, 3
ON_POLICY = OnPolicySettings(prompts=7, max_completion_length=16)
LOSSES = {
    "hard": {},
    "soft": dict(weights=dict(hard=0.5, soft=0.5)),
    "cached": dict(weights=dict(soft=1.0), top_k=8),
    "cached and hidden": dict(weights=dict(soft=1.0, hidden=1.0), top_k=8),
    "relations": dict(weights=dict(relations=1.0)),
    "sorted": dict(weights=dict(sorted=1.0)),
    "on_policy": dict(weights=dict(on_policy=1.0), on_policy=ON_POLICY),
    "both": dict(weights=dict(hard=0.5, on_policy=0.5), on_policy=ON_POLICY),
}


def count(loss=(), teacher=TEACHER, adapter=None):
    student = SimpleNamespace(
        loss=LossSettings(**dict(weights=dict(hard=1.0)) | dict(loss)),
        adapter=adapter,
        sequence_length=LENGTH,
        num_steps=STEPS,
        batch_size=ROWS,
    )
    return distilled(student, POLICY, teacher, texts=10, answered=1000)


def flops(config, length=LENGTH, **options):
    return useful_flops(config, length, trains_mtp=False, **options)


def test_compute_is_counted_by_pass():
    """Oracle: by hand, in passes of a token: forward and backward are one, forward alone is a third. A
    student without a teacher has none's answers to pay, and one with an adapter skips a part of a pass.
    """
    own, taught = flops(POLICY), flops(TEACHER) / 3
    rows, sampled = LENGTH * STEPS * ROWS, STEPS * 7
    answered, on_policy = 1000 * taught, sampled * (LENGTH * (own + taught) + 16 * own / 3)
    wanted = {
        "hard": rows * own + answered,
        "soft": rows * (own + taught) + answered,
        "cached": rows * own + answered + 10 * LENGTH * taught,
        "cached and hidden": rows * (own + taught) + answered + 10 * LENGTH * taught,
        "relations": rows * (own + taught) + answered,
        "sorted": rows * (own + taught) + answered,
        "on_policy": on_policy,
        "both": rows * own + answered + on_policy,
    }
    for name, loss in LOSSES.items():
        np.testing.assert_allclose(count(loss), wanted[name], err_msg=name)
    np.testing.assert_allclose(count(teacher=None), rows * own)
    np.testing.assert_allclose(
        count(teacher=None, adapter="lora"), rows * flops(POLICY, frozen=True)
    )


@pytest.mark.parametrize("epochs, scored, passes", [(1, 0, 100), (2, 2, 200 + 200 / 3)])
def test_the_compute_of_a_reinforced_student(tmp_path, epochs, scored, passes):
    """Oracle: by hand: two steps whose prompts and completions have 50 tokens and which sample 60. Each epoch
    is a pass over what is learned; each kind of log-probabilities takes a forward pass over it.
    """
    path = tmp_path / "metrics.jsonl"
    line = dict(phase="rl", tokens=30, prefilled_positions=20, sampled_tokens=60)
    lines = [dict(line, step=0), dict(line, step=1), dict(line, step=0, phase="another")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = SimpleNamespace(
        rollout=SimpleNamespace(max_prompt_length=40, longest=lambda: 24),
        epochs=epochs,
        scored=lambda: ("old_logprobs", "ref_logprobs")[:scored],
    )
    wanted = flops(POLICY) * (passes + (40 + 120) / 3)
    np.testing.assert_allclose(reinforced(settings, POLICY, path, "rl"), wanted)
