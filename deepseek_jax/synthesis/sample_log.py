"""Completions as they end, one by one on disk: what a call that is cut short leaves to the next."""

import json
import os


class SampleLog:
    """A file of completions: line by line {"row", "ids", "finished"}, the row that it is in a rollout.

    done: row -> its line, of an earlier call too; a last line that was cut short is none.
    writes: False on a process that shares the work with one that writes.
    """

    def __init__(self, path, *, writes=True):
        self.path, self.writes, self.done = path, writes, {}
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        self.done = {line["row"]: line for line in map(json.loads, whole)}
        if writes and len(whole) < len(lines):
            os.truncate(path, sum(map(len, whole)))

    def add(self, rows, rollout):
        """Keep rows of a rollout.Rollout that have ended."""
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
        """Take the file away: its rows are elsewhere."""
        if self.writes:
            self.path.unlink(missing_ok=True)
