"""The steps of a run on a terminal, and where there is none."""

import os
import pty
import re
import subprocess
import sys

from deepseek_jax.training.console import HEADLINE, StepConsole

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


def typed(program):
    """The bytes that a program writes on a terminal of its own, as text."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    found = []
    while True:
        try:
            found.append(os.read(ours, 4096))
        # Linux's end of a terminal that nobody writes on
        except OSError:
            break
        if not found[-1]:
            break
    os.close(ours)
    assert process.wait() == 0
    return b"".join(found).decode()


def screen(text):
    """The lines that a terminal shows in the end: a screen without scrolling, for what rich sends."""
    rows, row, column = [""], 0, 0
    for mark in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", text, re.DOTALL):
        if mark == "\r":
            column = 0
        elif mark == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif mark.startswith("\x1b"):
            if mark.endswith("A"):
                row -= int(mark[2:-1] or 1)
            elif mark.endswith("K"):
                rows[row] = ""
        else:
            rows[row] = rows[row].ljust(column)[:column] + mark + rows[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in rows if line.strip()]


def test_a_terminal_has_a_bar_which_garbles_no_line():
    """Oracle: a small terminal by hand: all lines are whole, in order, and the bar is gone in the end; while
    it was there it had step, number of steps, headline, speed and time left, and hid no cursor.
    """
    text = typed(PROGRAM)
    last = "grpo step 4 of 5  reward 1  loss 0.5  tokens_per_second 1.235e+04"
    lines = ["compiling", *(f"a line at {step}" for step in range(2, 5)), last, "the end"]
    assert screen(text) == lines
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for step, done in ((2, "3/5"), (3, "4/5"), (4, "5/5")):
        shown = (
            rf"grpo .* {done} reward {step / 4:.4g}  12,346 tokens/s [-\d]:[-\d]{{2}}:[-\d]{{2}}"
        )
        assert re.search(shown, plain)
    assert "\x1b[?25l" not in text


def test_a_phase_ends_with_its_last_line_and_others_come_two_seconds_apart(capsys):
    """Oracle: by hand: the first and the last line of each phase, the last as soon as it ends."""
    console = StepConsole()
    for phase in ("pretrain", "grpo"):
        console.begin(phase, 0, 6)
        for step in range(6):
            console.at(step)
            console.show(step, {"loss": float(step)})
        console.end()
        first = ["pretrain step 0 of 6  loss 0"] if phase == "pretrain" else []
        assert capsys.readouterr().out.splitlines() == [*first, f"{phase} step 5 of 6  loss 5"]
    console.end()
    assert capsys.readouterr().out == ""


def test_a_line_has_the_headline_first_and_six_numbers_at_most(capsys):
    """Oracle: by hand, of numbers in another order; without a headline number, those that there are."""
    console = StepConsole(0.0)
    console.begin("grpo", 0, None)
    console.show(0, {"other": 1.0} | dict.fromkeys(reversed(HEADLINE), 123456.789))
    console.show(1, {"other": 1.0})
    shown = "".join(f"  {name} 1.235e+05" for name in HEADLINE[:6])
    lines = [f"grpo step 0{shown}", "grpo step 1  other 1"]
    assert capsys.readouterr().out.splitlines() == lines
