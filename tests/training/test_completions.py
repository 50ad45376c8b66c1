"""The completions that a run keeps: their lines, their bound and their form on TensorBoard."""

import json
import math

import numpy as np
import pytest

from deepseek_jax.training.completions import LONGEST_TEXT, read_completions
from deepseek_jax.training.metrics import MetricsWriter
from tests.training.test_metrics import events

ONE = {
    "text": "2 !",
    "reward": np.float32(1),
    "parts": {"correct": np.float32(1)},
    "advantage": np.float32(0.5),
    "length": np.int64(3),
    "truncated": np.bool_(False),
}
GROUP = {"prompt": "1 + 1?", "answer": "2", "completions": [ONE]}


def logged(workdir, *spans, group=GROUP):
    """A closed writer that started each (phase, first, last) and kept a group of each step."""
    writer = MetricsWriter(workdir)
    for phase, first, last in spans:
        writer.start(phase, first)
        for step in range(first, last + 1):
            writer.write(step, {"loss": float(step)}, phase=phase, completions=[group])
    writer.close()
    return workdir / "completions.jsonl"


def test_a_group_is_one_line_of_the_format_that_pages_read(tmp_path):
    """Oracle: the line by hand, of numpy's numbers and without what is not finite or not there."""
    failed = ONE | {"reward": np.float32(math.nan), "parts": {"correct": math.nan, "brief": 0.5}}
    group = GROUP | {"answer": None, "completions": [ONE, failed]}
    path = logged(tmp_path, ("grpo", 4, 4), group=group)
    one = dict(
        text="2 !", reward=1.0, parts={"correct": 1.0}, advantage=0.5, length=3, truncated=False
    )
    line = dict(step=4, phase="grpo", prompt="1 + 1?", answer=None)
    line["completions"] = [one, one | dict(reward=None, parts={"correct": None, "brief": 0.5})]
    assert [json.loads(text) for text in path.read_text().splitlines()] == [line]
    assert read_completions(path) == read_completions(path, "grpo") == [line]
    assert read_completions(path, "sft") == read_completions(tmp_path / "none.jsonl") == []


def test_a_run_that_is_killed_and_resumes_has_no_line_twice(tmp_path):
    """Oracle: the file of a run that never stopped, byte for byte. The killed one was writing a line."""
    whole = logged(tmp_path / "whole", ("base", 0, 1), ("grpo", 0, 7))
    path = logged(tmp_path / "killed", ("base", 0, 1), ("grpo", 0, 5))
    path.write_text(path.read_text() + '{"step": 6, "pha')
    logged(tmp_path / "killed", ("grpo", 4, 7))
    assert path.read_bytes() == whole.read_bytes()


def test_a_long_text_loses_its_middle_and_says_its_length(tmp_path):
    """Oracle: both ends by hand, and the length in between; a text of just the limit is whole."""
    long = "a" * LONGEST_TEXT + "b" * LONGEST_TEXT
    whole = "c" * LONGEST_TEXT
    group = GROUP | {"prompt": whole, "completions": [ONE | {"text": long}]}
    (line,) = read_completions(logged(tmp_path, ("grpo", 0, 0), group=group))
    text, half = line["completions"][0]["text"], LONGEST_TEXT // 2
    assert line["prompt"] == whole
    left_out = f"({LONGEST_TEXT:,} characters left out)"
    assert text == f"{'a' * half} ... {left_out} ... {'b' * half}"


def test_no_file_is_made_where_nothing_is_kept(tmp_path):
    """Oracle: the names of the files."""
    writer = MetricsWriter(tmp_path)
    writer.start("sft", 0)
    writer.write(0, {"loss": 0.5}, phase="sft")
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


@pytest.mark.parametrize("text, cell", [("a|b\nc", "a&#124;b<br>c"), ("<think>", "&lt;think&gt;")])
def test_tensorboard_has_a_table_of_the_completions(tmp_path, text, cell):
    """Oracle: the table by hand, in which a text opens no cell, no line and no tag."""
    group = GROUP | {"completions": [ONE | {"text": text}]}
    logged(tmp_path, ("grpo", 3, 3), group=group)
    (table,) = [
        value.tensor.string_val[0].decode()
        for event in events(tmp_path, "grpo")
        for value in event.summary.value
        if value.tag.startswith("completions")
    ]
    head, _, row = table.splitlines()
    assert (
        head
        == "| prompt | answer | completion | reward | rewards | advantage | length | truncated |"
    )
    assert row == f"| 1 + 1? | 2 | {cell} | 1 | correct 1 | 0.5 | 3 | False |"
