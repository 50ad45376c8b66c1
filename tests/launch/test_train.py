"""launch/train.py as a user starts it, with a small recipe beside ours."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_jax.ops.rehearsal import rehearse
from deepseek_jax.parallel import MESH_AXES
from deepseek_jax.recipes.workdir import MARKER, REHEARSED
from tests import in_process, warm
from tests.benchmarks import finished_run

ROOT = Path(__file__).resolve().parents[2]
# It leaves minibatches and clip_eps_high at their defaults
SMALL = ROOT / "configs" / "grpo_small.py"
COUNT = "--xla_force_host_platform_device_count={}"
CONFIG = """
from ml_collections import ConfigDict
from configs.common import parse_arg

def get_config(arg=None):
    arg = parse_arg(arg, steps=3)
    return ConfigDict(dict(recipe="polling", seed=0, steps=arg.steps, wait=False, bad="", mesh={},
                           xla_flags=""))
"""
RECIPE = '''
"""Counts its steps in a file, and leaves with 75 when told to stop."""
import dataclasses, time
import jax, numpy as np
from absl import logging
from deepseek_jax.errors import BrokenTerm
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.stage import Source, Stage
from deepseek_jax.settings import build, unhashed

@dataclasses.dataclass(frozen=True)
class Nothing:
    """No field at all."""

@dataclasses.dataclass(frozen=True)
class Polling:
    recipe: str
    seed: int
    steps: int
    wait: bool = unhashed()
    bad: str = unhashed()
    mesh: dict = unhashed()
    xla_flags: str = unhashed()

SETTINGS = Polling

@dataclasses.dataclass(frozen=True, eq=False)
class NoData(Source):
    settings: Polling

    def describe(self, context):
        if self.settings.bad == "data" and jax.process_index() == 1:
            time.sleep(60)
        return f"no data for {dict(context.mesh.shape)['data']}"

@dataclasses.dataclass(frozen=True, eq=False)
class Counts(Stage):
    data: Source

    def run(self, context):
        settings, run = self.settings, context.run
        if settings.bad == "settings":
            build(Nothing, {"lr": 1}, "config.rl")
        if settings.bad == "library":
            np.zeros(3).reshape(2)
        if settings.bad == "fault":
            raise BrokenTerm("grpo: kl is exactly 0")
        logging.info("a library tells of a file")
        step = 0
        while step < settings.steps or settings.wait:
            step += 1
            if run.should_stop():
                (context.folder / "saved").write_text(str(step))
                raise SystemExit(75)
            time.sleep(0.01)
            if step == 3:
                print("under way", flush=True)
        done = context.folder / f"done{jax.process_index()}"
        done.write_text(f"{step} {dict(run.mesh.shape)}")
        (context.stage_folder / "steps").write_text(str(step))
        print(run.watchdog)

def stages(s):
    return [Counts("counted", s, NoData(s))]

def page(results):
    return run_page(results, "Polling")

def report(results):
    pass
'''
WORKERS = '''
"""Asks a worker process of math-verify what it has imported."""
import sys
from deepseek_jax.recipes.polling import Polling, page, report
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.rewards.math_verify import MathVerifier

SETTINGS = Polling

class Asks(Stage):
    def run(self, context):
        with MathVerifier(num_workers=1) as verifier:
            assert verifier.score(["1"], [r"$\\sqrt{2}$"]) == [0.0]  # starts the worker
            (worker,) = verifier._workers
            modules = worker._executor.submit(eval, "list(__import__('sys').modules)").result()
        main = sys.modules["__main__"].__file__
        (context.folder / "modules").write_text("\\n".join(modules))
        (context.folder / "main").write_text(main)

def stages(s):
    return [Asks("asked", s)]
'''
LAUNCH = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from deepseek_jax import recipes
recipes.__path__.append("plugins")
runpy.run_path({str(ROOT / "launch" / "train.py")!r}, run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path):
    """A directory to start from, with a config, a recipe and a way to launch."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "polling.py").write_text(RECIPE)
    (tmp_path / "plugins" / "workers.py").write_text(WORKERS)
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "launch_here.py").write_text(LAUNCH)
    return tmp_path


@pytest.fixture
def this_machine_again():
    yield
    rehearse(None)


def start(folder, *args, **environment):
    """One launch in a process of its own."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return warm.Program("launch_here.py", *args, cwd=folder, env=os.environ | environment, **pipes)


def launched(folder, *args):
    """The End of one launch in this process."""
    with in_process.plugged(folder):
        return in_process.launched("train", *args)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_recipe_gets_the_overridden_config_the_mesh_its_work_directory_and_observers(folder):
    """Oracle: by hand: eight devices of conftest over expert=2, the step count of the argument, the numbers
    of the flags. A recipe without a loop takes no step that could be traced.
    """
    flags = "--profile=3:2", "--watchdog=7", "--watchdog_requeue"
    fields = "--config=tiny.py:steps=4", "--config.mesh={'expert': 2}"
    status, out, err = launched(folder, *fields, *flags)
    assert status == 0, err
    workdir = folder / "runs" / "tiny_steps=4"
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": 4, "expert": 2}
    assert (workdir / "done0").read_text() == f"4 {mesh}"
    assert str(workdir) in out and "polling on 8 x" in out
    assert "Watchdog(factor=7.0, exit_status=75, floor_seconds=600.0)" in out
    assert "profile: nothing was traced: this run took no step from 3 to 4" in out


@pytest.mark.slow
@pytest.mark.parametrize("environment, devices", [("", 3), (COUNT.format(2), 2)])
def test_a_configs_compiler_flags_are_set_unless_the_environment_says_otherwise(
    folder, environment, devices
):
    """Oracle: the number of devices that the compiler's own flag asks for, in the line that names them."""
    process = start(
        folder, "--config=tiny.py", f"--config.xla_flags={COUNT.format(3)}", XLA_FLAGS=environment
    )
    out, err = process.communicate()
    assert f"polling on {devices} x cpu" in out, err


@pytest.mark.slow
def test_what_libraries_tell_is_shown_only_when_asked_for(folder):
    """Oracle: by hand: with absl's default it would be printed."""
    out, err = start(folder, "--config=tiny.py").communicate(timeout=120)
    assert "a library tells" not in out + err
    more = "--workdir=other", "--verbosity=0"
    _, err = start(folder, "--config=tiny.py", *more).communicate(timeout=120)
    assert "a library tells" in err


def test_another_config_in_a_work_directory_is_one_message_and_nothing_is_touched(folder):
    """Oracle: exit status 2, the stage and the difference by hand, no traceback, the directory's bytes; of a
    check too.
    """
    workdir = folder / "w"
    other = "--config=tiny.py", "--config.seed=5", f"--workdir={workdir}"
    assert launched(folder, "--config=tiny.py", f"--workdir={workdir}")[0] == 0
    before = contents(workdir)
    for more in ((), ("--check",)):
        status, _, err = launched(folder, *other, *more)
        assert status == 2 and "Traceback" not in err
        assert f"{workdir} has stages that are of other inputs, and is left as it is" in err
        assert "counted (complete): settings" in err and "config.seed: 0 -> 5" in err
        assert contents(workdir) == before


def test_what_has_changed_is_run_anew_where_that_is_asked_for(folder):
    """Oracle: by hand: the steps that the recipe counted, and the field in the mark."""
    more = "--config=tiny.py:steps=4", f"--workdir={folder / 'w'}", "--redo"
    assert launched(folder, "--config=tiny.py", f"--workdir={folder / 'w'}")[0] == 0
    assert launched(folder, *more, "--check")[0] == 0
    assert (folder / "w" / "done0").read_text().startswith("3 ")
    status, out, err = launched(folder, *more)
    assert status == 0 and "counted: settings changed, so it is run anew" in out, err
    assert (folder / "w" / "done0").read_text().startswith("4 ")
    assert json.loads((folder / "w" / MARKER).read_text())["steps"] == 4


def test_a_complete_run_on_another_mesh_is_still_complete(folder):
    """Oracle: the recipe's own file, which it would write again, and the mesh in the mark."""
    assert launched(folder, "--config=tiny.py")[0] == 0
    workdir = folder / "runs" / "tiny"
    (workdir / "done0").write_text("left as it is")
    assert launched(folder, "--config=tiny.py", "--config.mesh={'expert': 2}")[0] == 0
    assert (workdir / "done0").read_text() == "left as it is"
    assert json.loads((workdir / MARKER).read_text())["mesh"] == {"expert": 2}


MISTAKES = [
    ("--config=tiny.py --config.mesg.x=3", "config.mesg is not a field; did you mean mesh?"),
    ("--config=tiny.py --config.bad=settings", "config.rl.lr is not a field"),
]


@pytest.mark.parametrize("args, words", MISTAKES)
def test_a_mistake_is_one_message_exit_status_two_and_leaves_nothing(folder, args, words):
    """Oracle: the words a reader needs, no traceback, no file in a work directory."""
    status, _, err = launched(folder, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
    assert not list(folder.glob("runs/*/*"))


def test_a_rehearsal_says_so_and_is_no_result(folder, this_machine_again):
    """Oracle: by hand: the first line, the name of the default folder, the difference that keeps a run and a
    rehearsal apart, and the words of the command that writes tables of results.
    """
    end = launched(folder, "--config=tiny.py", "--rehearse=v5e")
    workdir = folder / "runs" / "tiny_as_v5e"
    assert end.status == 0, end.err
    assert "a rehearsal of v5e: its numbers are no results; work directory" in end.out
    assert json.loads((workdir / MARKER).read_text())[REHEARSED] == "v5e"
    rehearse(None)
    end = launched(folder, "--config=tiny.py", f"--workdir={workdir}")
    assert end.status == 2 and 'config.rehearsed: "v5e" -> absent' in end.err
    with pytest.raises(
        ValueError, match="tiny_as_v5e is a rehearsal of v5e; give the folder of a run"
    ):
        finished_run.read(workdir, {})


def test_a_machine_that_cannot_be_rehearsed_is_one_message(folder, this_machine_again):
    """Oracle: the words a reader needs, exit status 2, and no file."""
    status, _, err = launched(folder, "--config=tiny.py", "--rehearse=v4")
    assert status == 2 and "--rehearse='v4' cannot be rehearsed; it must be one of v5e, " in err
    assert not (folder / "runs").exists()


def test_a_mistake_that_jax_finds_is_one_message_too(folder):
    """Oracle: as above, with JAX's words, before this process has devices."""
    process = start(folder, "--config=tiny.py", "--distributed=yes")
    _, err = process.communicate(timeout=120)
    words = "error: --distributed=yes: coordinator_address should be defined"
    assert process.returncode == 2 and words in err and "Traceback" not in err, err
    assert not list(folder.glob("runs/*/*"))


@pytest.mark.slow
def test_a_misspelt_field_is_named_though_the_work_directory_has_another_config(folder):
    """Oracle: the suggestion of a fresh run, and the directory's bytes."""
    assert launched(folder, "--config=tiny.py")[0] == 0
    before = contents(folder / "runs")
    status, _, err = launched(folder, "--config=tiny.py", "--config.step=5")
    assert status == 2 and "config.step is not a field; did you mean steps?" in err
    assert "other inputs" not in err and contents(folder / "runs") == before


def test_an_error_out_of_a_library_keeps_its_traceback(folder):
    """Oracle: a ValueError of numpy, which the user cannot correct: status 1 and the line that raised it."""
    status, _, err = launched(folder, "--config=tiny.py", "--config.bad=library")
    assert status == 1 and "Traceback" in err and "reshape(2)" in err


@pytest.mark.slow
def test_a_fault_of_a_run_is_one_message_and_its_own_exit_status(folder):
    """Oracle: status 5 by the table in launch/README.md, the recipe's message, no traceback."""
    status, _, err = launched(folder, "--config=tiny.py", "--config.bad=fault")
    assert status == 5 and "error: grpo: kl is exactly 0" in err and "Traceback" not in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_recipe_save_and_leave_with_75(folder, signum):
    """Oracle: the recipe's own file, written only where should_stop() said so."""
    process = start(folder, "--config=tiny.py", "--config.wait=True")
    assert any("under way" in line for line in process.stdout)
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert int((folder / "runs" / "tiny" / "saved").read_text()) > 3


def test_a_run_records_the_command_that_started_it(folder):
    """Oracle: the words of the command line, which a shell's rules split in the same way."""
    words = ["tiny.py:steps=4", "--config.mesh={'data': 4, 'expert': 2}", "--workdir=a folder"]
    process = start(folder, *words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (record,) = json.loads((folder / "a folder" / "run.json").read_text())["starts"]
    assert record["experiment"] == "tiny.py:steps=4"
    assert shlex.split(record["command"]) == ["python", "launch/train.py", *words]


def test_a_work_directory_has_one_process_at_a_time(folder):
    """Oracle: status 2, the first one's pid and the directory's bytes while it runs; none once it was killed,
    and no owner once the next one has ended.
    """
    args = "--config=tiny.py", "--config.wait=True"
    first = start(folder, *args)
    assert any("under way" in line for line in first.stdout)
    owner = folder / "runs" / "tiny" / "owner.json"
    before = contents(folder / "runs")
    status, _, err = launched(folder, *args)
    place = f"{folder / 'runs' / 'tiny'}: process {first.pid} on "
    assert status == 2 and f"another process is at work in {place}" in err
    # The owner renews its own file meanwhile
    after = contents(folder / "runs")
    assert after.pop(owner) and before.pop(owner) and after == before
    first.kill()
    first.communicate()
    again = start(folder, *args)
    assert any("under way" in line for line in again.stdout)
    again.terminate()
    again.communicate(timeout=60)
    assert again.returncode == 75 and not owner.exists()


@pytest.mark.slow
def test_a_bucket_that_cannot_be_written_is_one_message(folder, bucket, monkeypatch):
    """Oracle: exit status 2, the flag, the bucket and what it answered; no traceback, no object."""
    monkeypatch.setattr(bucket, "read_only", True)
    place = f"{bucket.folder}/run"
    status, _, err = launched(folder, "--config=tiny.py", f"--workdir={place}")
    assert status == 2 and f"error: --workdir={place} cannot be written: " in err, err
    assert "storage.objects.create" in err and "Traceback" not in err and not bucket.objects


LEFT = {
    f"run/{name}"
    for name in ("config.json", "run.json", "stages.log", "counted/stage.json", "saved")
}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_stopped_and_resumed_there(folder, bucket):
    """Oracle: as in a folder: status 75 and the recipe's own file, twice; no owner at the end."""
    bucket.objects.clear()
    args = "--config=tiny.py", f"--workdir={bucket.folder}/run"
    process = start(folder, *args, "--config.wait=True")
    assert any("under way" in line for line in process.stdout)
    status, _, err = launched(folder, *args, "--config.wait=True")
    place = f"{bucket.folder}/run: process {process.pid} on "
    assert status == 2 and f"another process is at work in {place}" in err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75 and {*bucket.objects} == LEFT
    again = start(folder, *args, "--config.wait=True")
    assert any("under way" in line for line in again.stdout)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 75 and {*bucket.objects} == LEFT


@pytest.mark.slow
def test_processes_that_do_not_share_the_work_directory_are_refused_at_the_start(folder):
    """Oracle: status 2 of both processes, one message that names the one that sees another directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    source = (folder / "launch_here.py").read_text()
    quick = "from deepseek_jax.recipes import workdir\nworkdir.SHARED_SECONDS = 1.0\nrunpy"
    (folder / "launch_here.py").write_text(source.replace("\nrunpy", f"\n{quick}"))
    slurm = {"JAX_COORDINATOR_PORT": port, "SLURM_JOB_ID": "1"}
    slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    processes = [
        start(
            folder,
            *("--config=tiny.py", "--distributed=yes", f"--workdir=disk{i}"),
            **slurm,
            SLURM_PROCID=i,
            SLURM_LOCALID=i,
        )
        for i in "01"
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], ends
    (_, err), (_, other) = ends
    assert f"--workdir={folder / 'disk0'} of process 0 on" in err and "of process 1 on" in err
    assert "give all processes one --workdir that they share" in err and "error:" not in other
    assert not list(folder.glob("disk*/*"))


def test_a_reward_worker_imports_neither_the_program_nor_jax(folder):
    """Oracle: sys.modules of the worker, and by hand what launch/train.py imports."""
    process = start(folder, "--config=tiny.py", "--config.recipe=workers")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    modules = set((folder / "runs" / "tiny" / "modules").read_text().splitlines())
    assert (folder / "runs" / "tiny" / "main").read_text().endswith("launch/train.py")
    assert "deepseek_jax.rewards.workers" in modules
    program = {"absl.app", "launch", "launch.common"}
    assert not (program | {"jax", "jaxlib", "flax", "orbax", "transformers"}) & modules


@pytest.mark.slow
def test_a_second_start_compiles_nothing_that_the_first_compiled(tmp_path):
    """Oracle: the files of JAX's cache: every program that was compiled is a new one. The second start has a
    new work directory.
    """
    cache = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    small = (
        "base.optimizer.warmup_steps=1",
        "base.num_steps=2",
        "num_steps=2",
        "data.num_held_out=8",
    )

    def compiled(workdir):
        command = [sys.executable, ROOT / "launch" / "train.py", f"--config={SMALL}"]
        command += [f"--config.{field}" for field in small] + [f"--workdir={tmp_path / workdir}"]
        assert subprocess.run(command, env=os.environ | cache).returncode == 0
        return {path.name for path in tmp_path.glob("deepseek_jax/programs/*/*-cache")}

    first = compiled("first")
    # So many programs has the run: updates, rollouts, measurements, and single operations between them
    assert len(first) > 40
    assert compiled("second") == first


def tasks(folder, *args, count=2, environments=({}, {})):
    """Start as Slurm starts the tasks of a step: -> their processes. environments: more of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {
        "JAX_COORDINATOR_PORT": port,
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        # The job's, of which a step may have fewer
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": str(count),
    }
    numbered = zip(map(str, range(count)), environments, strict=False)
    return [
        start(folder, *args, SLURM_PROCID=i, SLURM_LOCALID=i, **slurm, **more)
        for i, more in numbered
    ]


def test_two_processes_make_one_mesh_and_one_work_directory(folder):
    """Oracle: twice conftest's eight devices in each; JAX finds its peers as under Slurm."""
    processes = tasks(folder, "--config=tiny.py")
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": 16}
    done = [(folder / "runs" / "tiny" / f"done{i}").read_text() for i in (0, 1)]
    assert done == [f"3 {mesh}"] * 2
    assert "polling on 16 x" in ends[0][0] and "polling" not in ends[1][0]
    # Without a flag
    assert "Watchdog(factor=20.0, exit_status=None, floor_seconds=600.0)" in ends[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("args", [[], ["--distributed=no"]])
def test_a_process_without_peers_does_not_wait_for_any(folder, args):
    """Oracle: the eight devices of one process: of a step of one task, and of two that run apart, of which
    the first takes the work directory.
    """
    processes = tasks(folder, "--config=tiny.py", *args, count=1 + len(args))
    ends = [process.communicate(timeout=120) for process in processes]
    done = [
        out for process, (out, _) in zip(processes, ends, strict=True) if not process.returncode
    ]
    assert done and all("polling on 8 x" in out for out in done), ends


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, words",
    [
        # Found before the processes have joined, and after that
        ("--config=tiny.py:stepps=3", "did you mean steps?"),
        ("--config=tiny.py --config.mesh={'expert':3}", "config.mesh.expert=3"),
        ("--config=tiny.py --config.bad=settings", "config.rl.lr is not a field"),
    ],
)
def test_a_mistake_is_printed_once_for_all_processes(folder, args, words):
    """Oracle: exit status 2 of both, the message in one of the two outputs."""
    processes = tasks(folder, *args.split())
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], ends
    assert words in ends[0][1] and "error:" not in ends[1][1], ends


LONELY = """
from launch import distributed
distributed.PRINT_SECONDS = 12
join = distributed.join_peers
distributed.join_peers = lambda seconds=12: join(seconds)
runpy"""


@pytest.mark.slow
def test_a_mistake_is_printed_where_a_process_does_not_come(folder):
    """Oracle: the message, once, although JAX ends the process that waits for its peer."""
    text = (folder / "launch_here.py").read_text()
    (folder / "launch_here.py").write_text(text.replace("\nrunpy", LONELY, 1))
    (process,) = tasks(folder, "--config=tiny.py:stepps=3", environments=({},))
    _, err = process.communicate(timeout=60)
    (said,) = re.findall("^error: .*", err, re.MULTILINE)
    assert process.returncode != 0 and "did you mean steps?" in said, err


TERM_EARLY = """
import os, signal
from deepseek_jax.recipes import workdir
workdir._check_shared = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
runpy"""


@pytest.mark.slow
def test_sigterm_before_the_run_listens_ends_every_process(folder):
    """Oracle: the status of a process that a signal ends; nothing is run."""
    text = (folder / "launch_here.py").read_text()
    (folder / "launch_here.py").write_text(text.replace("\nrunpy", TERM_EARLY, 1))
    processes = tasks(folder, "--config=tiny.py")
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    assert not list(folder.glob("runs/*/done*"))
