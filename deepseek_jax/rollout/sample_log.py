"""Writes completions to disk one by one as they end, so that a call can resume an interrupted one."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from deepseek_jax.rollout.completions import Rollout, RolloutLog, line_of


class SampleLog(RolloutLog):
    """A file of completions, a line each: {"row", "ids", "logprobs", "finished"}, row being its row in the
    rollout.

    done: row -> its line, those of earlier calls too; an incomplete last line is ignored, and cut off.
    writes: False on a process that shares the work with one that writes. every: seconds between two writes;
    with 0 every completion is on disk when `add` returns. on_add(): called after each `add`.
    """

    def __init__(
        self,
        path: Path,
        *,
        writes: bool = True,
        every: float = 0.0,
        on_add: Callable = lambda: None,
    ):
        self.path, self.writes, self.every, self.on_add = path, writes, every, on_add
        # Lines that wait to be written, and when the last ones were
        self.waiting, self.written = [], time.monotonic()
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        self.done = {line["row"]: line for line in map(json.loads, whole)}
        if writes and len(whole) < len(lines):
            # The next line must begin on a line of its own
            os.truncate(path, sum(map(len, whole)))

    def add(self, rows, rollout: Rollout):
        """Write the rows of a rollout that have ended."""
        new = [{"row": int(row)} | line_of(rollout, row) for row in rows]
        self.done |= {line["row"]: line for line in new}
        self.waiting += new
        if time.monotonic() - self.written >= self.every:
            self.write()
        self.on_add()

    def write(self):
        """Put the lines that wait on disk."""
        if self.writes and self.waiting:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.waiting)
                file.flush()
                os.fsync(file.fileno())
        self.waiting, self.written = [], time.monotonic()

    def remove(self):
        """Delete the file, once its completions are elsewhere."""
        if self.writes:
            self.path.unlink(missing_ok=True)
