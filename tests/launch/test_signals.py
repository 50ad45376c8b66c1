"""Ctrl-C and SIGTERM, from the first second of every program on."""

import re
import signal
import subprocess
import sys
import time

import pytest

from launch import signals
from tests.launch.test_train import ROOT
from tests.quick import others_slow

PROGRAMS = {
    "train": ["--config=configs/sft_small.py"],
    "generate": ["--config=configs/generate_small.py"],
    "evaluate": ["--checkpoint=model", "--data=arithmetic"],
    "chat": [".", "--say=hello"],
    "convert": ["--from=model", "--to=other"],
    "compare": [],
    "plan": ["--config=configs/sft_small.py", "--topology=v5e:1x1"],
    "sweep": ["--config=configs/sft_small.py", "--sweep=configs/sweeps/seeds.py"],
}
# Ctrl-C while jax is imported, in a callback that loses exceptions, as one of jax's does
EARLY = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                print("is heard")
            except KeyboardInterrupt:
                print("is lost")

sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# A wait in C for a lock that is never let go, without the interpreter: no handler of Python's runs meanwhile.
# The timer has another thread speak once the main one is there
DEAF = """
import ctypes, threading
from launch import signals
c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
c.pthread_mutex_init(lock, None)
with signals.interruptible():
    if {stop}:
        signals.Stop()
    threading.Timer(1, lambda: print("under way", flush=True)).start()
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("name", others_slow(PROGRAMS, "train"))
def test_ctrl_c_while_jax_is_imported_ends_every_program(name, tmp_path):
    """Oracle: by hand: one line more, and the status of a shell for Ctrl-C. The exception would be lost. A
    program whose output is answers says what it waits for on the standard error.
    """
    given = [*PROGRAMS[name], f"--workdir={tmp_path}"] if name in ("train", "generate") else []
    command = [sys.executable, "-c", EARLY, f"launch/{name}.py", *(given or PROGRAMS[name])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == signals.INTERRUPTED == 130, done.stderr
    said = [line for line in done.stdout.splitlines() if line not in ("", "importing jax")]
    assert said == ["Ctrl-C: ended; nothing was under way that could be saved"]
    assert done.stderr == ("importing jax\n" if name == "chat" else "")


@pytest.mark.parametrize("stop", [True, False])
def test_a_second_ctrl_c_ends_a_program_amid_a_compilation(stop):
    """Oracle: status 130 and a last line within seconds; at once with the first, it is the same request."""
    program = subprocess.Popen(
        [sys.executable, "-c", DEAF.format(stop=stop)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "under way\n"
    for _ in range(2):
        program.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(signals.TOGETHER_SECONDS + 1)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=10)
    assert program.returncode == 130 and not err
    assert out.strip() == "Ctrl-C again: ended at once; what came after the last save is lost"


@pytest.mark.slow
@pytest.mark.parametrize("tenths", range(0, 100, 5))
def test_ctrl_c_in_the_first_ten_seconds_is_heard(tenths, tmp_path):
    """Oracle: the run ends before its steps could have: it has saved (75), or nothing was under way (130)."""
    given = [
        "--config=configs/sft_small.py",
        "--config.base.num_steps=100000",
        f"--workdir={tmp_path}",
    ]
    program = subprocess.Popen(
        [sys.executable, "launch/train.py", *given],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(tenths / 10)
    program.send_signal(signal.SIGINT)
    try:
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    # In the first tenths Python itself starts, and answers as it does
    early = -signal.SIGINT if tenths <= 5 else 130
    assert program.returncode in (75, 130, early), (out, err)
    assert "Traceback" not in err or program.returncode == early != 130
    assert len(re.findall("^Ctrl-C: ended|^SIGINT: finishing", out, re.MULTILINE)) <= 1
