"""The README's command for a task of your own, with its line of jsonl, as they stand there.

Its Python is tested in tests/test_python_page.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from tests.models.families import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
(QUESTION,) = re.findall(r"```json\n(.*?)```", README, re.S)
(OWN_TASK,) = re.findall(r"^python (launch/train.py .*\\\n.*MY.jsonl.*)$", README, re.M)


def write_checkpoint(folder, **sizes):
    """A tiny random checkpoint with SmolLM2's tokenizer and chat template: -> the tokenizer."""
    tokenizer = load_tokenizer(smollm2_gguf())
    write_tiny_checkpoint("deepseek_v2", folder, vocab_size=tokenizer.vocab_size, **sizes)
    tokenizer.chat.save_pretrained(folder)
    return tokenizer


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
