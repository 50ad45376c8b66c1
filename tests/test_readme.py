"""The README's Python and its line of jsonl, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.losses import group_advantages
from deepseek_jax.models import count_params
from tests.models.families import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GRPO_STEP, REWARD, MODEL = re.findall(r"```python\n(.*?)```", README, re.S)
(QUESTION,) = re.findall(r"```json\n(.*?)```", README, re.S)
(OWN_TASK,) = re.findall(r"^python (launch/train.py .*\\\n.*MY.jsonl.*)$", README, re.M)


def write_checkpoint(folder, **sizes):
    """A tiny random checkpoint with SmolLM2's tokenizer and chat template: -> the tokenizer."""
    tokenizer = load_tokenizer(smollm2_gguf())
    write_tiny_checkpoint("deepseek_v2", folder, vocab_size=tokenizer.vocab_size, **sizes)
    tokenizer.chat.save_pretrained(folder)
    return tokenizer


def run_snippet(code):
    """Run it, and return its names."""
    names = {}
    exec(code, names)
    return names


@pytest.mark.slow
def test_the_example_samples_and_takes_one_grpo_step(capsys):
    """Oracle: by hand: texts are the tokens before the end, and a policy that has not moved has, a token, the
    loss of minus its completion's advantage. It is SmolLM2, and some answer is right.
    """
    seen = run_snippet(GRPO_STEP)
    printed = capsys.readouterr().out
    out, batch, tokenizer = seen["answers"].rollout, seen["batch"], seen["policy"].tokenizer
    assert all(repr(text) in printed for text in seen["answers"].texts)
    assert f"\n{seen['scores'].total}\nloss " in printed and 0 < seen["scores"].total.sum() < 8
    for text, ids, mask in zip(
        seen["answers"].texts, out.completion_ids, out.completion_mask, strict=True
    ):
        assert text == tokenizer.decode(ids[mask])
    wanted = group_advantages(seen["scores"].total, group_size=8, normalize_std=True)
    np.testing.assert_array_equal(batch["advantages"], wanted)
    lengths = batch["completion_mask"].sum(1)
    advantages = batch["advantages"][lengths > 0]
    assert float(seen["metrics"]["loss"]) == pytest.approx(-advantages.mean(), abs=1e-6)
    assert int(seen["state"].step) == 1


def test_the_reward_of_your_own_counts_beside_the_others():
    """Oracle: by hand: the first answer is right and brief, the second neither."""
    np.testing.assert_allclose(run_snippet(REWARD)["scores"].total, [1.2, 0.0], rtol=1e-6)


@pytest.mark.slow
def test_the_model_of_your_own_computes_logits():
    """Oracle: the shapes, and the number of parameters without making them."""
    seen = run_snippet(MODEL)
    assert seen["logits"].shape == (1, 16, 512) and np.isfinite(seen["logits"]).all()
    made = sum(leaf.size for leaf in jax.tree.leaves(seen["params"]))
    assert made == count_params(seen["config"])


@pytest.mark.slow
def test_a_task_of_your_own_is_trained_on(tmp_path):
    """Oracle: the program's own last line, and what it leaves. The file has the README's line
    twelve times, with other numbers; the model is tiny, and the run one step on one device.
    """
    lines = [QUESTION.strip().replace("3", str(number)) for number in range(2, 14)]
    (tmp_path / "MY.jsonl").write_text("\n".join(lines))
    write_checkpoint(tmp_path / "tiny")
    command = OWN_TASK.replace("\\", "").replace("MY.jsonl", f"{tmp_path}/MY.jsonl").split()
    small = dict(num_steps=1, prompts_per_step=1, group_size=2, init_from=tmp_path / "tiny")
    small |= {
        "data.num_held_out": 4,
        "rollout.max_completion_length": 4,
        "optimizer.warmup_steps": 0,
    }
    one_device = os.environ | {"XLA_FLAGS": ""}
    flags = [f"--config.{name}={value}" for name, value in small.items()]
    done = subprocess.run(
        [sys.executable, *command, *flags, f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        env=one_device,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete: 4 of 4 stages" in done.stdout
    assert (tmp_path / "run" / "grpo" / "params").is_dir()
