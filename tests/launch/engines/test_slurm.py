"""What launch/sweep.py asks Slurm for, and what it says where Slurm or submitit is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.engines.slurm import COMMANDS, check_installed

ROOT = Path(__file__).resolve().parents[3]
# Slurm's commands, as far as a submission needs them
SBATCH = '#!/bin/sh\ncp "$1" submitted.sh\necho "Submitted batch job 7"\n'
REFUSES = '#!/bin/sh\necho "sbatch: error: invalid partition specified: fast" >&2\nexit 1\n'
QUIET = "#!/bin/sh\n"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder on PATH with programs that are named as Slurm's and do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(SBATCH if name == "sbatch" else QUIET)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def swept(folder, *args):
    """launch/sweep.py of two seeds on Slurm."""
    (folder / "two.py").write_text("def sweep(config):\n    return [{'seed': 1}, {'seed': 2}]\n")
    config = ROOT / "configs" / "sft_small.py"
    flags = [f"--config={config}", "--sweep=two.py", "--engine=slurm", "--workdir=out", *args]
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "sweep.py"), *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_the_runs_are_one_array_with_what_the_flags_ask_for(tmp_path, commands):
    """Oracle: sbatch's options by hand. No job is ever listed, so the runs end without an exit status; the
    interval until that is believed is cut by a Slurm that leaves one.
    """
    (commands / "squeue").write_text(
        "#!/bin/sh\nfor s in 1 2; do echo 3 > out/seed=$s.status; done\n"
    )
    flags = (
        "--nodes=2",
        "--devices_per_node=4",
        "--partition=fast",
        "--minutes=30",
        "--max_jobs=1",
    )
    done = swept(tmp_path, *flags)
    assert done.returncode == 1 and "2 of 2 runs failed" in done.stderr, done.stderr
    asked = set(re.findall(r"^#SBATCH --(\S+)$", (tmp_path / "submitted.sh").read_text(), re.M))
    assert asked >= {
        *("array=0-1%1", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=fast"),
        *("time=30", "signal=TERM@120", "requeue"),
    }


@pytest.mark.slow
def test_a_refusal_is_one_message_and_nothing_is_recorded_as_started(tmp_path, commands):
    """Oracle: sbatch's own words; exit status 2; no job in the sweep's record."""
    (commands / "sbatch").write_text(REFUSES)
    done = swept(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Slurm refuses the jobs: sbatch: error: invalid partition specified: fast" in done.stderr
    assert '"jobs"' not in (tmp_path / "out" / "sweep.json").read_text()


def test_without_submitit_the_message_names_the_extra(commands, monkeypatch):
    """Oracle: the words a reader needs, where Python finds no submitit."""
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name == "submitit" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(ValueError, match=r'needs submitit: pip install -e "\.\[slurm\]"'):
        check_installed()


def test_without_slurms_commands_the_message_names_them(monkeypatch, tmp_path):
    """Oracle: the words a reader needs, on a PATH without them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="this machine has no sbatch, srun, .* login node"):
        check_installed()


def test_a_slurm_that_does_not_answer_is_said(commands):
    """Oracle: Slurm's own words."""
    (commands / "sinfo").write_text(
        '#!/bin/sh\necho "Unable to contact slurm controller" >&2\nexit 1\n'
    )
    with pytest.raises(ValueError, match="does not answer: Unable to contact slurm controller"):
        check_installed()
