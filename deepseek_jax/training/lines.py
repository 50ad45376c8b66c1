"""Files of JSON lines that phases write step by step, with no line twice after a resumption.

Tests: tests/training/test_metrics.py, tests/training/test_completions.py.
"""

import json
from pathlib import Path

from deepseek_jax.files import GrowingFile, as_path, write_whole

# The file of a run's metrics in its work directory
METRICS = "metrics.jsonl"


class PhaseLines:
    """A file of JSON objects with `step` and `phase`, one on each line.

    A local file has a line when `add` returns. In a bucket the lines wait first, see
    files.GrowingFile.
    """

    def __init__(self, path: str | Path):
        self.path = as_path(path)
        self._file = GrowingFile(self.path)

    def start(self, phase: str, first_step: int):
        """Begin or resume a phase: delete its lines from first_step on and an unfinished last line.

        Raises:
            ValueError: as read_lines does.
        """
        self.flush()
        if self.path.exists():
            lines_to_keep = [
                text
                for text, line in _texts(self.path)
                if line["phase"] != phase or line["step"] < first_step
            ]
            write_whole(self.path, "".join(lines_to_keep))
        self._file = GrowingFile(self.path)

    def add(self, line: dict):
        """Add a line.

        Raises:
            ValueError: for a number that is not finite.
        """
        self._file.add(json.dumps(line, allow_nan=False) + "\n")

    def flush(self):
        """Write the lines that wait."""
        self._file.flush()


def read_lines(path: str | Path) -> list[dict]:
    """Read the objects of a file of JSON lines, in order.

    A last line that a killed process left unfinished is skipped.

    Returns:
        A list of dicts, empty where the file does not exist.

    Raises:
        ValueError: naming the line, for any other line that is not JSON.
    """
    return [line for _, line in _texts(as_path(path))]


def _texts(path):
    """Yield the pairs (text, object) of a file's lines.

    A text without its newline was cut short, and is skipped.
    """
    if not path.exists():
        return
    for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            return
        try:
            yield text, json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}); mend it or move the file away"
            ) from error
