"""The lines before waits: what is announced, what reminders name, and who is silent."""

import re
import subprocess
import sys
import time

import pytest

from deepseek_jax import progress
from tests.terminal import screen, typed

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
# A wait that is long in a fifth of a second, with lines of others within it
SLOW = """
import sys, time
from deepseek_jax import progress

progress.SOON_SECONDS, progress.FOOT_SECONDS, progress.POLL_SECONDS = 0.1, 0.2, 0.02
with progress.speaking(), progress.waiting_for("a thing"):
    time.sleep(0.5)
    print("first line")
    print("in two", end=" ", flush=True)
    time.sleep(0.3)
    print("parts")
    time.sleep(0.3)
    print("an error", file=sys.stderr)
    time.sleep(0.3)
with progress.waiting_for("another thing"):
    print("after")
    time.sleep(0.3)
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


def test_a_wait_that_nothing_ended_ends_with_the_one_around_it(quick, capsys):
    """Oracle: by hand: no line about it after the block."""
    with progress.speaking():
        with progress.waiting_for("outside"):
            progress.Wait("a compilation that failed").begin()
        time.sleep(0.3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (7200, "2.0 h"),
        (3e5, "3 days"),
    ],
)
def test_a_duration_is_in_the_unit_that_people_use(seconds, words):
    """Oracle: by hand."""
    assert progress.duration(seconds) == words


def test_a_terminal_has_its_reminders_in_one_place_and_no_line_is_lost():
    """Oracle: by hand, on a small terminal: reminders were drawn and are gone in the end; a line that is
    printed in parts, and one on standard error, are whole; outside of `speaking` nothing is drawn.
    """
    text = typed(SLOW, columns=60)
    lines = ["a thing", "first line", "in two parts", "an error", "after"]
    assert screen(text) == lines
    drawn = re.findall(r"\x1b\[2Kstill a thing, 0 s\r", text)
    # Over the line that is being written nothing is drawn
    assert drawn and "in two \x1b" not in text and "still" not in text.partition("after")[2]


def test_a_dumb_terminal_has_lines():
    """Oracle: no code of a terminal."""
    assert "\x1b" not in typed(f"import os; os.environ['TERM'] = 'dumb'\n{SLOW}", columns=60)


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
