"""Writes completions to disk one by one as they end, so that a call can resume an interrupted one."""

import json
import os
from pathlib import Path


class SampleLog:
    """A file of completions, a line each: {"row", "ids", "finished"}, row being its row in the rollout.

    done: row -> its line, those of earlier calls too; an incomplete last line is ignored, and cut off.
    writes: False on a process that shares the work with one that writes.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self.writes, self.done = path, writes, {}
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        self.done = {line["row"]: line for line in map(json.loads, whole)}
        if writes and len(whole) < len(lines):
            # The next line must begin on a line of its own
            os.truncate(path, sum(map(len, whole)))

    def add(self, rows, rollout):
        """Write the rows of a rollout.Rollout that have ended."""
        new = [
            {
                "row": int(row),
                "ids": rollout.completion_ids[row][rollout.completion_mask[row]].tolist(),
                "finished": not rollout.truncated[row],
            }
            for row in rows
        ]
        self.done |= {line["row"]: line for line in new}
        if self.writes:
            with open(self.path, "a") as file:
                file.writelines(json.dumps(line) + "\n" for line in new)
                file.flush()
                os.fsync(file.fileno())

    def remove(self):
        """Delete the file, once the chunk holds its rows."""
        if self.writes:
            self.path.unlink(missing_ok=True)
