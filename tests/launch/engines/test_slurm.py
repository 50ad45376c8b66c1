"""What launch/sweep.py asks Slurm for, and what it says where Slurm is missing."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.engines import RUNNING, WAITING
from launch.engines.slurm import COMMANDS, Slurm
from tests.in_process import launched

ROOT = Path(__file__).resolve().parents[3]
ENGINES = ROOT / "launch" / "engines"
# Slurm's commands, as far as a submission needs them
SBATCH = "#!/bin/sh\ncat > submitted.sh\necho '7;cluster'\n"
REFUSES = '#!/bin/sh\necho "sbatch: error: invalid partition specified: fast" >&2\nexit 1\n'
QUIET = "#!/bin/sh\n"
LISTS = "#!/bin/sh\nprintf '7_0 PENDING\\n7_1 RUNNING\\n8_0 RUNNING\\n'\n"


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
    with contextlib.chdir(folder):
        return launched("sweep", *flags)


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
    assert done.status == 1 and "2 of 2 runs failed" in done.err, done.err
    assert "seed=2: started; job 7_1; its output is in" in done.out
    asked = set(re.findall(r"^#SBATCH --(\S+)$", (tmp_path / "submitted.sh").read_text(), re.M))
    assert asked >= {
        *("array=0-1%1", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=fast"),
        *("time=30", "signal=TERM@120", "requeue"),
    }


def test_a_dry_run_prints_the_script_without_slurm(tmp_path, monkeypatch):
    """Oracle: sbatch's options by hand. The script, run with an srun that prints its arguments, has a run's
    command for each index of the array. Nothing is made.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    flags = "--nodes=2", "--devices_per_node=4", "--partition=a b", "--minutes=4", "--max_jobs=1"
    done = swept(tmp_path, "--dry_run", *flags)
    assert done.status == 0 and not (tmp_path / "out").exists(), done.err
    script = done.out[done.out.index("#!/bin/bash\n") :]
    assert re.findall(r"^#SBATCH --(.*)$", script, re.M) == [
        *("job-name=sweep", "array=0-1%1", "nodes=2", "ntasks-per-node=4", "time=4"),
        *("signal=TERM@60", "requeue", "open-mode=append"),
        *(f"output={tmp_path}/out/slurm/%A_%a.out", "gpus-per-node=4", "partition='a b'"),
    ]
    (tmp_path / "srun").write_text('#!/bin/sh\nfor each; do echo "$each"; done\n')
    (tmp_path / "srun").chmod(0o755)
    for index, seed in enumerate((1, 2)):
        words = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        assert words[:3] == ["--kill-on-bad-exit=1", sys.executable, f"{ENGINES}/task.py"]
        assert words[-4:-2] == [f"{ROOT}/launch/train.py", f"--config={ROOT}/configs/sft_small.py"]
        assert words[-2:] == [f"--config.seed={seed}", f"--workdir={tmp_path}/out/seed={seed}"]


def test_a_dry_run_says_that_data_are_not_there(tmp_path):
    """Oracle: the run, the field and a line of the file; one message, exit status 2."""
    done = swept(tmp_path, "--dry_run", "--config.data.path=no.jsonl")
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: --sweep: seed=1: config.data.path='no.jsonl' is not")
    assert '{"messages": [' in done.err


@pytest.mark.slow
def test_a_refusal_is_one_message_and_nothing_is_recorded_as_started(tmp_path, commands):
    """Oracle: sbatch's own words; exit status 2; no job in the sweep's record."""
    (commands / "sbatch").write_text(REFUSES)
    done = swept(tmp_path)
    assert done.status == 2 and "Traceback" not in done.err
    assert "Slurm refuses the jobs: sbatch: error: invalid partition specified: fast" in done.err
    assert '"jobs"' not in (tmp_path / "out" / "sweep.json").read_text()


def test_without_slurms_commands_the_message_names_them(monkeypatch, tmp_path):
    """Oracle: the words a reader needs, on a PATH without them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="this machine has no sbatch, srun, .* login node"):
        Slurm(tmp_path, None).check_installed()


def test_a_slurm_that_does_not_answer_is_said(commands, tmp_path):
    """Oracle: Slurm's own words."""
    (commands / "sinfo").write_text(
        '#!/bin/sh\necho "Unable to contact slurm controller" >&2\nexit 1\n'
    )
    with pytest.raises(ValueError, match="does not answer: Unable to contact slurm controller"):
        Slurm(tmp_path, None).check_installed()


def test_listed_jobs_wait_or_run_until_slurm_says_otherwise(commands, tmp_path):
    """Oracle: by hand: squeue's lines; a controller that does not answer leaves the last answer."""
    (commands / "squeue").write_text(LISTS)
    engine = Slurm(tmp_path, None)
    listed = {"7_0": WAITING, "7_1": RUNNING}
    assert engine.state(["7_0", "7_1", "7_2"]) == listed
    (commands / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert engine.state(["7_0", "7_1"]) == listed
    (commands / "squeue").write_text(QUIET)
    assert engine.state(["7_0", "7_1"]) == {}


def test_waiting_jobs_leave_the_queue_and_running_ones_are_told_to_save(commands, tmp_path):
    """Oracle: scancel's arguments by hand: of a running job the step, which gets the signal once."""
    (commands / "squeue").write_text(LISTS)
    (commands / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    Slurm(tmp_path, None).cancel(["7_0", "7_1", "7_2"])
    assert (tmp_path / "cancelled").read_text() == "7_0\n--signal=TERM 7_1.0\n"


def test_an_array_has_an_id_for_each_job(commands, tmp_path, monkeypatch):
    """Oracle: sbatch's answer of a federation, "ID;CLUSTER", by hand; it gets the script, and the folder of
    the output is there before it. A refusal is sbatch's own last line.
    """
    engine = Slurm(tmp_path / "out", None)
    monkeypatch.setattr(engine, "describe", lambda jobs: f"script of {len(jobs)}")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert engine.submit(["a", "b", "c"]) == ["7_0", "7_1", "7_2"]
    assert (tmp_path / "submitted.sh").read_text() == "script of 3"
    assert (tmp_path / "out" / "slurm").is_dir()
    (commands / "sbatch").write_text(REFUSES)
    with pytest.raises(ValueError, match="refuses the jobs: sbatch: error: invalid partition"):
        engine.submit(["a"])
