"""The steps of a run on a terminal, and where there is none."""

import re

import pytest

from deepseek_jax import progress
from deepseek_jax.training import console as console_module
from deepseek_jax.training.console import SHOWN, WIDTH, StepConsole
from tests.terminal import screen, typed

# Steps 2 to 4 of a phase, which resumed, and lines of others amid them
PROGRAM = """
import time
from deepseek_jax import progress
from deepseek_jax.training.console import StepConsole

console = StepConsole()
with progress.speaking():
    console.begin("grpo", 2, 5)
    with progress.waiting_for("compiling", at_once=True):
        time.sleep(0.6)
    for step in range(2, 5):
        console.at(step)
        console.show(step, dict(loss=0.5, reward=step / 4, tokens_per_second=12345.6))
        print("a line at", step, flush=True)
        time.sleep(0.6)
    console.end()
    print("the end")
"""
# What a step of GRPO logs, as the console reads it
GRPO = {
    "reward": 1.9141,
    "accuracy": 0.953,
    "loss": -1.339e-09,
    "completion_length": 16.81,
    "tokens_per_second": 8304.2,
    "entropy": 0.0604,
    "grad_norm": 0.0463,
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: a list with the time."""
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_a_bar_which_garbles_no_line():
    """Oracle: a small terminal by hand: all lines are whole, in order, and the bar is gone in the end; while
    it was there it had step, number of steps, numbers and, from its second interval on, the time left; and it
    hid no cursor.
    """
    text = typed(PROGRAM, columns=100)
    last = "grpo  5/5  reward 1.00  12,346 tok/s"
    lines = ["compiling", *(f"a line at {step}" for step in range(2, 5)), last, "the end"]
    assert screen(text) == lines
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for step in (2, 3, 4):
        bar = rf"grpo  ━+─* +{step + 1}/5  reward {step / 4:.2f}  12,346 tok/s"
        assert re.search(bar, plain)
    assert "\x1b[?25l" not in text


def test_a_line_is_for_people_and_fits_80_columns(capsys, clock):
    """Oracle: by hand: no exponent; no loss where there is a reward, which it says nothing beside; a second
    for each of 76 steps; what does not fit is left out, the least important first.
    """
    console = StepConsole(0.0)
    console.begin("grpo", 20, 100)
    for step in range(20, 24):
        clock[0] += 1.0
        console.show(step, GRPO)
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "grpo   24/100  reward 1.91  right  95%  length 16.8   8,304 tok/s  76 s left"
    assert len(line) <= WIDTH


def test_lines_are_aligned_also_where_a_metric_is_not_in_all(capsys, clock):
    """Oracle: by hand: the column of `tok/s` is the same in all lines; the metric that only some have is in
    these.
    """
    console = StepConsole(0.0)
    console.begin("base", 0, 1000)
    for step, held_out in enumerate((2.5, None, 10.5, None)):
        clock[0] += 3.0
        values = {"loss": 10.0**-step, "tokens_per_second": 9.0 * 10**step}
        console.show(step, values if held_out is None else values | {"held_out_loss": held_out})
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index("tok/s") for line in lines}) == 1
    assert ["held out" in line for line in lines] == [True, False, True, False]
    assert lines[3].split() == "base 4/1000 loss 0.001 9,000 tok/s 50 min left".split()


def test_the_time_left_is_of_the_usual_pace_and_not_of_a_step_that_compiles(capsys, clock):
    """Oracle: by hand: a second for each of ten steps between two lines, but for one line of 400 s; nothing
    before two intervals, and nothing at the end.
    """
    console = StepConsole(0.0)
    console.begin("sft", 0, 51)
    for step, seconds in ((0, 90.0), (10, 400.0), (20, 10.0), (30, 10.0), (50, 20.0)):
        clock[0] += seconds
        console.show(step, {"loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    left = [re.search(r"\S+ \S+ left$", line) for line in lines]
    assert [found and found[0] for found in left] == [None, None, "30 s left", "20 s left", None]


def test_a_phase_ends_with_its_last_line_and_others_come_two_seconds_apart(capsys):
    """Oracle: by hand: the first and the last line of each phase, the last as soon as it ends."""
    console = StepConsole()
    for phase in ("pretrain", "grpo"):
        console.begin(phase, 0, 6)
        for step in range(6):
            console.at(step)
            console.show(step, {"loss": float(step)})
        console.end()
        lines = capsys.readouterr().out.splitlines()
        first = ["pretrain  1/6  loss  0.000"] if phase == "pretrain" else []
        assert [re.sub("  . s left", "", line) for line in lines] == [
            *first,
            f"{phase}  6/6  loss  5.000",
        ]
    console.end()
    assert capsys.readouterr().out == ""


def test_numbers_without_a_form_are_shown_by_their_names(capsys):
    """Oracle: by hand; where a metric has a form, only such metrics; numbers that are not finite, too."""
    console = StepConsole(0.0)
    console.begin("grpo", 0, None)
    console.show(0, {"other": 123456.789})
    console.show(1, {"other": 1.0, "loss": float("nan"), "entropy": float("inf")})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grpo  1  other 123,456.789"
    assert lines[1].split() == ["grpo", "2", "loss", "nan", "entropy", "inf"]


@pytest.mark.parametrize("name", SHOWN)
def test_no_number_has_an_exponent_or_a_negative_zero(name, capsys):
    """Oracle: by hand, of a tiny, a usual and a large number."""
    for value in (-1.4e-9, 0.5, 123456.789):
        console = StepConsole(0.0)
        console.begin("x", 0, None)
        console.show(0, {name: value})
    printed = capsys.readouterr().out
    assert not re.search(r"\de[-+]\d|-0", printed) and len(printed.splitlines()) == 3


def test_a_pipe_is_reminded_of_a_slow_step_by_its_number(monkeypatch, capsys):
    """Oracle: by hand."""
    for name, seconds in dict(EVERY_SECONDS=0.3, POLL_SECONDS=0.02).items():
        monkeypatch.setattr(progress, name, seconds)
    monkeypatch.setattr(progress, "_hushed", False)
    console = StepConsole()
    with progress.speaking():
        console.begin("grpo", 0, 5)
        console.at(3)
        progress._ended.wait(0.7)
        console.end()
    assert "still in step 4 of 5 of grpo, 0 s\n" in capsys.readouterr().out
