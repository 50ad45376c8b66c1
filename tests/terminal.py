"""A terminal for tests: what a program writes on it, and what it shows."""

import os
import pty
import re
import subprocess
import sys


def typed(program, columns):
    """The bytes that a program writes on a terminal of its own of so many columns, as text."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "30"}
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
    """The lines that a terminal shows in the end: a screen without scrolling, for the codes that we send."""
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
