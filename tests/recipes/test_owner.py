"""Who owns a directory: in a folder and in a bucket, with clocks that run fast."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepseek_jax import files
from deepseek_jax.recipes import owner
from deepseek_jax.recipes.owner import OWNER, owned, read_owner

ROOT = Path(__file__).resolve().parents[2]
# Owns a directory until its input ends, and says so
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from deepseek_jax.recipes import owner
owner.BEAT_SECONDS, owner.WATCH_SECONDS, owner.SETTLE_SECONDS = 0.2, 1.5, 0.3

def busy(other):
    print("busy", other["pid"], flush=True)
    sys.exit(3)

with owner.owned(sys.argv[1], busy):
    print("mine", flush=True)
    sys.stdin.read()
"""


class Busy(Exception):
    """The directory has another owner, the argument."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 0.8)
    monkeypatch.setattr(owner, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(owner, "POLL_SECONDS", 0.05)


# Processes that come to a bucket import much first
WITH_PROCESSES = pytest.mark.parametrize(
    "place", ["folder", pytest.param("bucket", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """A directory that is not there yet."""
    if request.param == "folder":
        return files.Path(tmp_path) / "run"
    bucket = request.getfixturevalue("bucket")
    bucket.objects.clear()
    return files.as_path(bucket.folder) / "run"


@contextlib.contextmanager
def another(place):
    """Another process that owns the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "mine\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def claim(place):
    """Own the directory and leave it."""

    def busy(other):
        raise Busy(other)

    with owned(place, busy):
        return read_owner(place)


def elsewhere(place, **fields):
    """The owner.json of a process on another machine."""
    there = dict(host="far", boot="another", pid=7, started="1", token="theirs", beats=1) | fields
    files.write_whole(place / OWNER, json.dumps(there))
    return there


def test_the_owner_is_named_while_it_lives_and_gone_after_it(place):
    """Oracle: this process by hand; the file, which grows older by beats and nothing else."""
    with owned(place, None) as token:
        first = read_owner(place)
        time.sleep(0.4)
        later = read_owner(place)
    assert first["pid"] == os.getpid() and first["token"] == token
    assert later["beats"] > first["beats"] and later | {"beats": 1} == first | {"beats": 1}
    assert read_owner(place) is None and not files.below(place.parent)[1:]


@WITH_PROCESSES
def test_a_directory_of_a_living_process_is_refused_at_once(place, capsys):
    """Oracle: the other process's pid; nothing waits for its heartbeat, on the machine that both are on."""
    with another(place) as process:
        with pytest.raises(Busy) as error:
            claim(place)
        assert error.value.args[0]["pid"] == process.pid
    assert "looking" not in capsys.readouterr().out


@WITH_PROCESSES
def test_a_killed_process_of_this_machine_has_its_directory_taken_over_at_once(place, capsys):
    """Oracle: this process's pid in the file; nothing waits."""
    with another(place) as process:
        process.kill()
        process.wait()
        assert read_owner(place)["pid"] == process.pid
        assert claim(place)["pid"] == os.getpid()
    assert "looking" not in capsys.readouterr().out


def test_a_pid_that_another_process_has_by_now_is_not_the_owner(place):
    """Oracle: this process's own pid, of a process that started at another time: taken over at once."""
    own = claim(place)
    elsewhere(place, **own | {"token": "theirs", "started": "1"})
    assert claim(place)["token"] != "theirs"


def test_an_owner_on_another_machine_lives_if_its_file_changes(place, capsys):
    """Oracle: a thread that renews the file; the message names the machine, the process and the directory."""
    place.mkdir(parents=True, exist_ok=True)
    there, ended = elsewhere(place), threading.Event()

    def renew():
        beats = 1
        while not ended.wait(0.2):
            beats += 1
            elsewhere(place, beats=beats)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Busy) as error:
            claim(place)
    finally:
        ended.set()
        thread.join()
    assert error.value.args[0] == there
    assert f"{place} is owned by process 7 on far: looking" in capsys.readouterr().out


def test_an_owner_on_another_machine_that_stands_still_is_taken_over_after_the_time(
    place, monkeypatch
):
    """Oracle: by hand, on a clock that moves by the sleeps alone, and this process's pid."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(owner, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    elsewhere(place)
    assert claim(place)["pid"] == os.getpid()
    assert clock.now >= owner.WATCH_SECONDS


@WITH_PROCESSES
def test_a_process_that_stood_still_ends_where_its_directory_was_taken_over(place):
    """Oracle: exit status 1, a message that names the directory and the new owner, and the new owner's file:
    a stopped process, whose directory another machine's process takes.
    """
    with another(place) as process:
        process.send_signal(signal.SIGSTOP)
        there = elsewhere(place)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=30) == 1
        message = process.stderr.read()
    assert f"{place} was taken over by process 7 on far" in message
    assert read_owner(place) == there


@WITH_PROCESSES
def test_of_many_that_come_at_once_one_owns_the_directory(place):
    """Oracle: their own words, over the file of a dead process."""
    elsewhere(place)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    # Some first say that they look at the owner for a while
    said = [next(x for x in iter(p.stdout.readline, "") if "looking" not in x) for p in started]
    pid = read_owner(place)["pid"]
    for process in started:
        process.communicate()
    assert sorted(line.split()[0] for line in said) == ["busy", "busy", "mine"]
    assert said[[process.pid for process in started].index(pid)] == "mine\n"


def test_a_directory_that_cannot_be_written_is_one_message(bucket, tmp_path, monkeypatch):
    """Oracle: the flag, the directory and the cause: a folder of the system's, another owner.json, a bucket
    without permission, and one that is not there.
    """
    with pytest.raises(ValueError, match=r"--workdir=/proc cannot be written: .*Error: .*/proc"):
        claim("/proc")
    with pytest.raises(ValueError, match="--workdir=/dev/null/run cannot be a directory"):
        claim("/dev/null/run")
    for text in ("mine", "[]", '{"token": 1}'):
        (tmp_path / OWNER).write_text(text)
        with pytest.raises(
            ValueError, match=f"--workdir={tmp_path}: owner.json there is not a run's"
        ):
            claim(tmp_path)
        assert (tmp_path / OWNER).read_text() == text
    monkeypatch.setattr(bucket, "read_only", True)
    place = f"{bucket.folder}/new"
    with pytest.raises(ValueError, match=f"--workdir={place} cannot be written: .*storage.objects"):
        claim(place)
    with pytest.raises(ValueError, match="--workdir=gs://nobody/x cannot be written: FileNotFound"):
        claim("gs://nobody/x")
