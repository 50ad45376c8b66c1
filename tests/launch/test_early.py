"""Mistakes that show without JAX are named before its import, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A program as a user starts it, which says whether it has imported jax when it ends
LAUNCH = """
import atexit, runpy, sys
atexit.register(lambda: print("jax" in sys.modules))
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""
LAUNCHERS = ("SLURM_PROCID", "TPU_WORKER_ID", "OMPI_COMM_WORLD_RANK")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["grpo_small", "--chek"], "Unknown command line flag 'chek'. Did you mean: check"),
        (["configs/grpo_smal.py"], "there is no such file; did you mean configs/grpo_small.py?"),
        (["grpo_small", "--config.recipe=grop"], "config.recipe='grop' is not a recipe; did you"),
        (["grpo_small", "--config.num_steps=abc"], "--config.num_steps=abc cannot be read"),
        (["grpo_small", "--profile=5"], "--profile=5 is not STEP:COUNT"),
        (["grpo_small", "--wandb=a/b/c"], "--wandb=a/b/c is not PROJECT or ENTITY/PROJECT"),
        (["grpo_small", "--watchdog=0", "--watchdog_requeue"], "--watchdog_requeue needs"),
        (["grpo_small", "--config.init_from=runs/sft_small"], "is not there yet; make it with"),
    ],
)
def test_what_needs_no_jax_is_refused_before_its_import(arguments, words, tmp_path):
    """Oracle: the words of the message, status 2, and the modules of a fresh interpreter as it ends."""
    program = LAUNCH.format(program=str(ROOT / "launch" / "train.py"))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in LAUNCHERS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
