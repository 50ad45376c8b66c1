"""The lines of a run and of a plan: no program is silent for long."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_plan import ANSWERS

ROOT = Path(__file__).resolve().parents[2]
# The seconds between reminders here, which are 30 for a user; those after which a wait is announced, so that
# a fast machine says what a slow one says; and those between two looks at the waits
EVERY, SOON, POLL = 1.0, 0.0, 0.02
# A program as a user starts it, but for those numbers; it says when it begins to import jax
LAUNCH = """
import runpy, sys
sys.path.insert(0, {root!r})
from deepseek_jax import progress

class Says:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            print("jax begins", flush=True)

sys.meta_path.insert(0, Says())
progress.EVERY_SECONDS, progress.SOON_SECONDS, progress.POLL_SECONDS = {numbers}
runpy.run_path({program!r}, run_name="__main__")
"""
SMALL = dict(num_steps=2, prompts_per_step=4, group_size=4, save_every=2)
SMALL |= {"base.num_steps": 4, "base.optimizer.warmup_steps": 1, "base.num_documents": 500}
# Little to compile
SMALL |= {
    "model.num_hidden_layers": 1,
    "base.bias_update_speed": 0.0,
    "base.optimizer.kind": "adamw",
}
SMALL |= {"data.num_held_out": 8, "rollout.max_completion_length": 16}


def timed(folder, program, *arguments):
    """[(seconds since the start, line)] of a program of launch/ in a folder, which ends with 0."""
    path = str(ROOT / "launch" / f"{program}.py")
    text = LAUNCH.format(root=str(ROOT), numbers=(EVERY, SOON, POLL), program=path)
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = [(time.monotonic() - began, line.rstrip("\n")) for line in process.stdout]
    assert process.wait() == 0, "\n".join(line for _, line in found)
    return found


def check_silences(found):
    """The first line comes before jax, and no silence takes a third of the whole: a busy machine makes both
    longer.
    """
    assert [line for _, line in found[:2]] == ["importing jax", "jax begins"]
    times = [seconds for seconds, _ in found]
    gaps = {found[i + 1]: b - a for i, (a, b) in enumerate(zip(times, times[1:], strict=False))}
    assert max(gaps.values()) < times[-1] / 3, (max(gaps, key=gaps.get), found)


def in_order(lines, wanted):
    """Whether lines that begin so come in this order, with others between them."""
    rest = iter(lines)
    return all(any(line.startswith(words) for line in rest) for words in wanted)


@pytest.mark.slow
def test_a_run_says_what_it_waits_for(tmp_path):
    """Oracle: by hand: what takes long, in order; nothing of TFDS's downloads; a phase's last line before
    what follows; and the whole run's time for its silences.
    """
    sizes = [f"--config.{name}={value}" for name, value in SMALL.items()]
    found = timed(tmp_path, "train", "--config=grpo_small", *sizes, "--workdir=run")
    check_silences(found)
    lines = [line for _, line in found]
    wanted = [
        "importing jax",
        "grpo on 1 x cpu",
        "model: deepseek_v3, 1 layer, ",
        "4 stages; steps of training: pretrain 4, grpo 2",
        # Between these, a fast machine checks and hashes the data too fast for a line
        "stage 1 of 4, pretrain (base)",
        "compiling the update",
        "pretrain  1/4  loss ",
        "pretrain  4/4  loss ",
        "stage 2 of 4, before",
        "measuring before: 8 questions",
        "compiling the reading of prompts",
        "compiling the sampling of tokens",
        "stage 3 of 4, grpo (GRPO)",
        "compiling the update",
        "grpo  1/2  reward ",
        "grpo  2/2  reward ",
        "stage 4 of 4, after",
        "complete: 4 of 4 stages in ",
        "  after: accuracy ",
        "  page: ",
        "  chat: python launch/chat.py ",
    ]
    assert in_order(lines, wanted), "\n".join(lines)
    assert not [line for line in lines if "ownload" in line]


@pytest.mark.slow
def test_a_plan_says_what_it_waits_for(tmp_path):
    """Oracle: by hand: a line for each program before its table; and the whole time for its silences."""
    (tmp_path / "answers.py").write_text(ANSWERS)
    arguments = ["--config=answers.py", "--topology=v5e:1x1", "--cache=cache", "--program=prefill"]
    found = timed(tmp_path, "plan", *arguments)
    check_silences(found)
    lines = [line for _, line in found]
    wanted = ["importing jax", "listing the programs", "weights", "compiling program ", "prefill"]
    assert in_order(lines, wanted), "\n".join(lines)
    # Neither TFDS nor libtpu speaks
    assert not [line for line in lines if "WARNING" in line or "Error" in line or "E0000" in line]
