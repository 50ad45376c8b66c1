"""Writes completions to disk one by one as they end, so that a call can resume an interrupted one."""

import base64
import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
from etils.epath import Path

from deepseek_jax.files import GrowingFile, as_path, write_whole
from deepseek_jax.rollout.completions import Rollout, RolloutLog

# Written as base64: for 8,192 completions of 32,768 tokens all devices would wait minutes for a text of
# numbers, and lists of them take ten times the memory of arrays
ARRAYS = {"ids": "<i4", "logprobs": "<f4", "observed": "?"}


class SampleLog(RolloutLog):
    """A file of completions, a line each: {"row", "ids", "logprobs", "finished"}, row being its row in the
    rollout, ids and logprobs arrays as in ARRAYS; that of a conversation also has "observed", such an array,
    and "conversation", its record.

    done: row -> its line, those of earlier calls too; an incomplete last line is ignored, and cut off.
    writes: False on a process that shares the work with one that writes. every: seconds between two writes;
    with 0 every completion is on disk when `add` returns. on_add(): called after each `add`. Raises
    ValueError, naming the file and the line, where a whole line is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        writes: bool = True,
        every: float = 0.0,
        on_add: Callable = lambda: None,
    ):
        self.path, self.writes, self.every, self.on_add = as_path(path), writes, every, on_add
        self.file = GrowingFile(self.path, sync=True)
        # Lines that wait to be written, and when the last ones were
        self.waiting, self.written = [], time.monotonic()
        lines = _lines(self.path)
        whole = [line for line in lines if line.endswith(b"\n")]
        self.done = {line["row"]: line for line in self._read(whole)}
        if writes and len(whole) < len(lines):
            # The next line must begin on a line of its own
            write_whole(self.path, b"".join(whole).decode())

    def _read(self, lines):
        for number, line in enumerate(lines, start=1):
            try:
                yield _completion(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path} is damaged: line {number} holds no completion; remove the file, and its "
                    "completions are sampled anew"
                ) from error

    def add(self, rows, rollout: Rollout):
        """Write the rows of a rollout that have ended."""
        new = [self._line(rollout, row) for row in rows]
        self.done |= {line["row"]: line for line in new}
        if self.writes:
            self.waiting += new
        if time.monotonic() - self.written >= self.every:
            self.write()
        self.on_add()

    def _line(self, rollout, row):
        mask = rollout.present(row)
        line = {
            "row": int(row),
            "ids": rollout.completion_ids[row][mask],
            "logprobs": rollout.sampler_logprobs[row][mask],
            "finished": bool(not rollout.truncated[row]),
        }
        if self.conversations is None:
            return line
        record = dataclasses.asdict(self.conversations.of[int(row)])
        return line | {"observed": rollout.observed_mask[row][mask], "conversation": record}

    def write(self):
        """Put the lines that wait on disk."""
        if self.waiting:
            self.file.add("".join(map(_text, self.waiting)))
        self.waiting, self.written = [], time.monotonic()

    def flush(self):
        """Put the lines that wait where a run that is stopped now finds them again, in a bucket too."""
        self.write()
        self.file.flush()

    def remove(self):
        """Delete the file, once its completions are elsewhere."""
        if self.writes:
            self.path.unlink(missing_ok=True)


def _text(line):
    packed = {
        name: line[name].astype(dtype).tobytes() for name, dtype in ARRAYS.items() if name in line
    }
    return json.dumps(line | {n: base64.b64encode(b).decode() for n, b in packed.items()}) + "\n"


def _completion(text):
    line = json.loads(text)
    # A line of single turns has nothing observed
    packed = {n: base64.b64decode(line[n]) for n in ARRAYS if n in line or n != "observed"}
    return line | {name: np.frombuffer(packed[name], ARRAYS[name]) for name in packed}


def _lines(path):
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []
