"""SampleLog: write completions to disk as they end, so that a later call can resume the rollout."""

import base64
import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
from etils.epath import Path

from deepseek_jax.files import GrowingFile, as_path, write_whole
from deepseek_jax.rollout.completions import Rollout, RolloutLog

# Arrays of a line, with their dtypes, which are written as base64. For 8,192 completions of 32,768
# tokens all devices would wait minutes for numbers to be written as text, and lists of them take
# ten times the memory of arrays
ARRAYS = {"ids": "<i4", "logprobs": "<f4", "observed": "?"}


class SampleLog(RolloutLog):
    """A file of completions, one line each, which a later call of the rollout reads.

    A line is {"row", "ids", "logprobs", "finished"}. row is the completion's row in the rollout;
    ids and logprobs are arrays, see ARRAYS. A conversation also has "observed", another such array,
    and "conversation", its record. An incomplete last line is ignored, and removed from the file.

    Args:
        path: The file.
        earlier: Further files with lines of earlier calls; the file of each process, where
            processes own rows.
        writes: False on a process that shares the work with a process that writes.
        every: Seconds between two writes. With 0, every completion is on disk when `add` returns.
        on_add: Called after each `add`.

    Attributes:
        done: {row: its line}, of the completions that ended in earlier calls.
        ended: The number of these, and of the ones that have ended in this call.

    Raises:
        ValueError: A whole line is damaged. The message names the file and the line.
    """

    def __init__(
        self,
        path: Path,
        *,
        earlier: Sequence[Path] = (),
        writes: bool = True,
        every: float = 0.0,
        on_add: Callable[[], object] = lambda: None,
    ):
        self.path, self.writes, self.every, self.on_add = as_path(path), writes, every, on_add
        self.file = GrowingFile(self.path, sync=True)
        # Lines that wait to be written, and the time of the last write
        self.waiting: list[dict] = []
        self.written = time.monotonic()
        lines = _lines(self.path)
        whole = _whole(lines)
        done = {line["row"]: line for line in self._read(self.path, whole)}
        for other in map(as_path, earlier):
            done |= {line["row"]: line for line in self._read(other, _whole(_lines(other)))}
        self.done, self.ended = done, len(done)
        if writes and len(whole) < len(lines):
            # Without the incomplete line, the next line begins on a line of its own
            write_whole(self.path, b"".join(whole).decode())

    def _read(self, path, lines):
        for number, line in enumerate(lines, start=1):
            try:
                yield _completion(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged: line {number} holds no completion; remove the file, and its "
                    "completions are sampled anew"
                ) from error

    def add(self, rows: np.ndarray, rollout: Rollout):
        """Add the rows of a rollout that have ended, and write them if a write is due."""
        self.ended += len(rows)
        if self.writes:
            self.waiting += [self._line(rollout, row) for row in rows]
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
        """Write the lines that wait to disk."""
        if self.waiting:
            self.file.add("".join(map(_text, self.waiting)))
        self.waiting, self.written = [], time.monotonic()

    def flush(self):
        """Write the lines that wait, even to a bucket, so that a run can stop and resume later."""
        self.write()
        self.file.flush()

    def remove(self):
        """Delete the file, after its completions were stored elsewhere."""
        if self.writes:
            self.path.unlink(missing_ok=True)


def _text(line):
    packed = {
        name: line[name].astype(dtype).tobytes() for name, dtype in ARRAYS.items() if name in line
    }
    return json.dumps(line | {n: base64.b64encode(b).decode() for n, b in packed.items()}) + "\n"


def _completion(text):
    line = json.loads(text)
    # A line of a single turn has no "observed"
    packed = {n: base64.b64decode(line[n]) for n in ARRAYS if n in line or n != "observed"}
    return line | {name: np.frombuffer(packed[name], ARRAYS[name]) for name in packed}


def _whole(lines):
    return [line for line in lines if line.endswith(b"\n")]


def _lines(path):
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []
