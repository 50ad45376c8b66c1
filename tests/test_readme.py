"""README.md's questions and reward of one's own, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import load_tokenizer
from tests.models.families import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
(REWARD,) = re.findall(r"```python\n# my_rewards.py\n(.*?)```", README, re.S)
(QUESTION,) = re.findall(r"^echo '(.*?)' >> my.jsonl", README, re.M)
(OWN_TASK,) = re.findall(r"^python (launch/train.py .*\\\n.*my_rewards.py.*)$", README, re.M)


def write_checkpoint(folder, **sizes):
    """A tiny random checkpoint with SmolLM2's tokenizer and chat template: -> the tokenizer."""
    tokenizer = load_tokenizer(smollm2_gguf())
    write_tiny_checkpoint("deepseek_v2", folder, vocab_size=tokenizer.vocab_size, **sizes)
    tokenizer.chat.save_pretrained(folder)
    return tokenizer


@pytest.mark.slow
def test_questions_and_a_reward_of_your_own_are_trained_on(tmp_path):
    """Oracle: the program's own last line, what it leaves, and the reward by hand: short answers earn 1.
    The file has the README's line twelve times, with other numbers; the model is tiny, and the run one step
    on one device.
    """
    lines = [QUESTION.replace("3", str(number)) for number in range(2, 14)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    (tmp_path / "my_rewards.py").write_text(REWARD)
    write_checkpoint(tmp_path / "tiny")
    program, config, *flags = shlex.split(OWN_TASK.replace("\\\n", " "))
    config = config.replace("configs/", f"{ROOT}/configs/")
    small = dict(num_steps=1, prompts_per_step=1, group_size=2, init_from=tmp_path / "tiny")
    small |= {
        "data.num_held_out": 4,
        "rollout.max_completion_length": 4,
        "optimizer.warmup_steps": 0,
    }
    flags += [f"--config.{name}={value}" for name, value in small.items()]
    done = subprocess.run(
        [sys.executable, ROOT / program, config, *flags, "--workdir=run"],
        cwd=tmp_path,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete: 4 of 4 stages" in done.stdout
    assert (tmp_path / "run" / "grpo" / "params").is_dir()
    assert '"reward_my_rewards.py:brief": 1.0' in (tmp_path / "run" / "metrics.jsonl").read_text()
