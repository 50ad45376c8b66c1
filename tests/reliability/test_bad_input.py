"""A user's mistakes, in one process: each is one message and exit status 2, and no file changes."""

import os
import re
import signal
from pathlib import Path

import jax
import pytest

from tests.compilations import compilations
from tests.in_process import launched
from tests.quick import others_slow
from tests.reliability.bad_inputs import GROUPS
from tests.reliability.goods import goods

ROOT = Path(__file__).resolve().parents[2]
WITH_CONFIG = ("train", "generate", "plan", "sweep")
WITH_WORKDIR = ("train", "generate", "evaluate", "sweep")
# Small programs that may be compiled before the mistake can show: the plan by which each run knows its sizes
# makes one number, --program computes shapes, parameters that are read are copied to the devices, and --check
# sums over each axis of the mesh
SMALL = {"plans": 10, "weights": 40, "tools": 3}
ONE_NUMBER = 1
# Characters that a person still reads
LONGEST = 5000
# Far more than any case takes: what is no mistake to the program would train for minutes
SECONDS = 60


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    goods(folder)
    return folder


def arguments(line):
    """(program, its arguments) of a case's command line."""
    program, *given = line.split()
    if given and not given[0].startswith("-") and program in WITH_CONFIG:
        name, colon, arg = given[0].partition(":")
        file = ROOT / "configs" / f"{name}.py"
        given[0] = f"--config={file if file.exists() else name}{colon}{arg}"
    if program in WITH_WORKDIR and "--workdir" not in line:
        given.append("--workdir=w")
    return program, given


def contents(folder):
    """{path: bytes} of all files, None for folders; without what Python writes beside a module."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def faults(line, message, prepare=None, *, good, here, small=0):
    """What is wrong with the answer to a case: list of str."""
    program, given = arguments(line)
    if prepare is not None:
        prepare(good, here)
    (here / "w").mkdir(exist_ok=True)
    before = contents(here)
    # So that a program that an earlier case compiled counts again
    jax.clear_caches()
    signal.alarm(SECONDS)
    try:
        with compilations() as compiled:
            end = launched(program, *given)
    finally:
        signal.alarm(0)
    wanted = "^error: " + ".*".join(map(re.escape, message.split("...")))
    found = []
    if end.status != 2 or "Traceback" in end.err:
        found.append(f"exit status {end.status}")
    if len(end.err) > LONGEST:
        found.append(f"{len(end.err)} characters of messages")
    messages = re.findall("^error: ", end.err, re.MULTILINE)
    if len(messages) != 1 or not re.search(wanted, end.err, re.DOTALL | re.MULTILINE):
        found.append(f"not the message {message!r}")
    if len(compiled) > small:
        found.append(f"{len(compiled)} programs compiled")
    if contents(here) != before:
        found.append("other files than before")
    return [f"{line}: {', '.join(found)}: {end.err[-2000:]}"] if found else []


@pytest.mark.parametrize("group", others_slow(GROUPS, "data", "workdirs", "late"))
def test_a_mistake_is_one_message_and_leaves_everything_as_it_was(
    good, group, tmp_path, monkeypatch, record_property
):
    """Oracle: the messages of bad_inputs.py; exit status 2, the bytes of all files before and after, and what
    JAX was asked to compile.
    """
    record_property("number", len(GROUPS[group]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    # No key of Weights & Biases
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    previous = signal.signal(signal.SIGALRM, _too_late)
    wrong = []
    for index, case in enumerate(GROUPS[group]):
        here = tmp_path / str(index)
        here.mkdir()
        monkeypatch.chdir(here)
        wrong += faults(*case, good=good, here=here, small=SMALL.get(group, ONE_NUMBER))
    signal.signal(signal.SIGALRM, previous)
    assert not wrong, "\n".join(wrong)


def shown_by_check():
    """Twenty cases of launch/train.py, from all groups."""
    cases = [case for group in GROUPS.values() for case in group if case[0].startswith("train ")]
    return [case for case in cases if "--check" not in case[0]][:: len(cases) // 20][:20]


@pytest.mark.slow
@pytest.mark.parametrize("case", shown_by_check(), ids=lambda case: case[0])
def test_check_says_of_a_mistake_what_the_run_says(good, case, tmp_path, monkeypatch):
    """Oracle: the messages of bad_inputs.py, which the run gives; --check compiles a sum for each axis."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    line, *others = case
    assert not faults(f"{line} --check", *others, good=good, here=here, small=60)


def test_there_are_many_cases(record_property):
    """Oracle: by hand: the project promises 150; none is there twice."""
    # It does nothing to a run, so the table has no row of it
    record_property("number", 0)
    cases = [case for group in GROUPS.values() for case in group]
    assert len(cases) >= 500
    plain = [case for case in cases if len(case) == 2]
    assert len(set(plain)) == len(plain)


def _too_late(*_):
    raise TimeoutError(f"still at work after {SECONDS} s in {os.getcwd()}")
