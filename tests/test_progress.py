"""The lines before waits: what is announced, what reminders name, and who is silent."""

import subprocess
import sys
import time

import pytest

from deepseek_jax import progress

# ds.train where a finder, which finds nothing, says that the import of jax begins
TRAIN = """
import sys
import deepseek_jax as ds

class Says:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            print("jax begins", flush=True)

sys.meta_path.insert(0, Says())
ds.train
assert "jax" not in sys.modules
ds.train(dict(recipe="none", seed=0), sys.argv[1])
"""
FIRST = """
import sys, threading
from deepseek_jax import progress

with progress.speaking():
    with progress.importing_jax():
        print(threading.active_count(), "jax" in sys.modules)
"""


@pytest.fixture
def quick(monkeypatch):
    """A second is a twentieth of one, and the first process speaks."""
    monkeypatch.setattr(progress, "SOON_SECONDS", 0.1)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.6)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_hushed", False)


def test_a_call_of_the_library_waits_in_silence(quick, capsys):
    """Oracle: no output outside of `speaking`, before and after such a block."""
    with progress.waiting_for("a thing"):
        time.sleep(0.3)
    with progress.speaking():
        pass
    with progress.waiting_for("a thing", at_once=True):
        time.sleep(0.3)
    assert capsys.readouterr().out == ""


def test_a_long_wait_is_announced_and_reminded_of_and_a_short_one_is_not(quick, capsys):
    """Oracle: by hand: a line after 0.1 s, and reminders 0.6 s after a line each."""
    with progress.speaking():
        with progress.waiting_for("a short thing"):
            pass
        time.sleep(0.2)
        with progress.waiting_for("a long thing"):
            time.sleep(0.3)
            assert capsys.readouterr().out == "a long thing\n"
            time.sleep(1.4)
    lines = capsys.readouterr().out.splitlines()
    assert set(lines) <= {"still a long thing, 1 s", "still a long thing, 2 s"} and lines


def test_of_waits_within_others_all_are_announced_and_the_innermost_is_reminded_of(quick, capsys):
    """Oracle: by hand: the outer one first, although the inner one begins at once; its own reminders come
    when the inner one has ended, also by an error.
    """
    with progress.speaking(), progress.waiting_for("outside"):
        with pytest.raises(KeyError), progress.waiting_for("inside"):
            time.sleep(1.0)
            raise KeyError
        assert capsys.readouterr().out == "outside\ninside\nstill inside, 1 s\n"
        time.sleep(0.7)
        assert "still outside, " in capsys.readouterr().out


def test_a_wait_that_moves_on_is_reminded_of_by_its_latest_name(quick, capsys):
    """Oracle: by hand: no announcement, and seconds since it moved."""
    with progress.speaking(), progress.waiting_for("the steps") as wait:
        for step in range(9):
            wait.now(f"in step {step}")
            time.sleep(0.02)
        time.sleep(0.7)
    assert capsys.readouterr().out == "still in step 8, 1 s\n"


def test_other_processes_than_the_first_are_silent(quick, capsys):
    """Oracle: no output while hushed."""
    progress.hush(True)
    with progress.speaking(), progress.waiting_for("a thing", at_once=True):
        time.sleep(0.3)
    assert capsys.readouterr().out == ""


def test_only_the_first_time_of_each_shape_is_a_wait(quick, capsys):
    """Oracle: by hand: a line for the first of two slow blocks, and one for a shape that is new."""
    compiling = progress.FirstTime("compiling")
    with progress.speaking():
        for shape in ((2, 3), (2, 3), (2, 4), (2, 3)):
            with compiling(shape):
                time.sleep(0.3)
    assert capsys.readouterr().out == "compiling\n" * 2


def test_the_first_line_comes_before_jax_and_before_any_thread():
    """Oracle: the threads and modules of a fresh interpreter; malloc is set up before another thread."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    assert done.stdout == "importing jax\n1 False\n"


def test_train_says_that_it_imports_jax_before_it_does(tmp_path):
    """Oracle: the moment at which a fresh interpreter looks for jax."""
    program = [sys.executable, "-c", TRAIN, str(tmp_path / "run")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert "config.recipe='none' is not a recipe" in done.stderr
    assert done.stdout.splitlines()[:2] == ["importing jax", "jax begins"]
