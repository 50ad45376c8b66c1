"""The completions that a run keeps: their lines, their bound and their form on TensorBoard."""

import json
import math

import numpy as np
import pytest

from deepseek_jax.training.completions import (
    LONGEST_CONVERSATION,
    LONGEST_TEXT,
    fair_limit,
    read_completions,
    shown_text,
    spoken_lines,
)
from deepseek_jax.training.metrics import MetricsWriter
from tests.training.test_metrics import events

ONE = {
    "text": "2 !",
    "reward": np.float32(1),
    "parts": {"correct": np.float32(1)},
    "advantage": np.float32(0.5),
    "columns": {},
    "length": np.int64(3),
    "truncated": np.bool_(False),
    "unread": np.bool_(False),
}
GROUP = {"prompt": "1 + 1?", "answer": "2", "columns": {}, "completions": [ONE]}


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
    one = dict(text="2 !", reward=1.0, parts={"correct": 1.0}, advantage=0.5, columns={}, length=3)
    one |= {"truncated": False, "unread": False}
    line = dict(step=4, phase="grpo", prompt="1 + 1?", answer=None, columns={})
    line["completions"] = [one, one | dict(reward=None, parts={"correct": None, "brief": 0.5})]
    assert [json.loads(text) for text in path.read_text().splitlines()] == [line]
    assert read_completions(path) == read_completions(path, "grpo") == [line]
    assert read_completions(path, "sft") == read_completions(tmp_path / "none.jsonl") == []


def test_columns_stay_apart_from_the_fields_of_a_line_and_long_ones_are_cut(tmp_path):
    """Oracle: by hand: columns with the names of our own fields; both ends of a text, in the room that the
    short one leaves; NaN is null.
    """
    columns = {"step": "x" * 100, "phase": 7, "long": "a" * 9000 + "b" * 9000, "score": math.nan}
    logs = {"text": None, "tokens": 12, "why": "c" * (LONGEST_TEXT + 1)}
    group = GROUP | {"columns": columns, "completions": [ONE | {"columns": logs}]}
    (line,) = read_completions(logged(tmp_path, ("grpo", 4, 4), group=group))
    assert (line["step"], line["phase"]) == (4, "grpo")
    half = (LONGEST_TEXT - 100) // 2
    cut = f"{'a' * half} ... ({18000 - 2 * half:,} characters left out) ... {'b' * half}"
    assert line["columns"] == columns | {"long": cut, "score": None}
    own = line["completions"][0]["columns"]
    assert "(1 characters left out)" in own.pop("why") and own == {"text": None, "tokens": 12}


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


def called(content, **calls):
    """A turn that calls tools: name -> arguments."""
    functions = [dict(name=name, arguments=arguments) for name, arguments in calls.items()]
    calls = [dict(type="function", function=function) for function in functions]
    return dict(role="assistant", content=content, tool_calls=calls)


def result(name, text):
    return dict(role="tool", name=name, content=text)


TALK = [
    called("Let me see.", add={"a": 1, "b": [2.5, None]}, run={"code": "a = 1\nprint(a)"}),
    result("add", "3"),
    result("run", "1\n2"),
    called("", add={}),
    dict(role="user", content="no call"),
    dict(role="assistant", content=""),
]


def test_a_conversation_has_a_line_for_each_turn_each_call_and_each_reply():
    """Oracle: by hand: a turn of nothing but calls has no line of its own, and one of nothing has."""
    assert spoken_lines(TALK) == [
        ("model", "Let me see."),
        ("call", "add(a=1, b=[2.5, null])"),
        ("call", 'run(code="""\na = 1\nprint(a)\n""")'),
        ("tool", "3"),
        ("tool", "1\n2"),
        ("call", "add()"),
        ("reply", "no call"),
        ("model", ""),
    ]


def test_no_line_of_a_text_looks_like_the_line_of_another():
    """Oracle: the lines by hand. A single turn is its text."""
    forged = [dict(role="assistant", content="2\ntool  4")]
    assert shown_text({"text": "2 tool 4", "messages": forged}) == "model 2\n      tool  4"
    assert shown_text({"completion": "2\n4"}, "completion") == "2\n4"


def test_a_conversation_keeps_its_messages_and_the_longest_of_their_texts_are_cut(tmp_path):
    """Oracle: by hand: those of a short one as they are; of a long one, what is short, every role, name and
    number, and the ends of what is long.
    """
    code, text = "b" * 10 * LONGEST_CONVERSATION, "c" * LONGEST_CONVERSATION
    long = [called("short", run={"code": code, "n": 3}), result("run", text), *TALK[3:]]
    group = GROUP | {"completions": [ONE | {"messages": TALK}, ONE | {"messages": long}, ONE]}
    (line,) = read_completions(logged(tmp_path, ("grpo", 0, 0), group=group))
    short, cut, single = line["completions"]
    assert short["messages"] == TALK and "messages" not in single
    # 12 characters are those of the short texts
    most = (LONGEST_CONVERSATION - len("shortno call")) // 2
    assert len(json.dumps(cut["messages"])) < LONGEST_CONVERSATION + 1000
    function = cut["messages"][0]["tool_calls"][0]["function"]
    for own, whole in (
        (function["arguments"].pop("code"), code),
        (cut["messages"][1].pop("content"), text),
    ):
        assert own.startswith(whole[: most // 2] + " ... (") and own.endswith(whole[-most // 2 :])
    assert function == {"name": "run", "arguments": {"n": 3}}
    assert cut["messages"][1:] == [dict(role="tool", name="run"), *TALK[3:]]


def test_a_fair_limit_cuts_the_longest_alone():
    """Oracle: the largest limit of all, tried one by one."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths, total = rng.integers(0, 20, rng.integers(1, 8)).tolist(), int(rng.integers(8, 60))
        fit = [m for m in range(total + 1) if sum(min(n, m) for n in lengths) <= total]
        assert fair_limit(lengths, total) == max(fit), (lengths, total)
    assert fair_limit([], 7) == 7


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
    row = table_of(tmp_path)
    assert row == f"| 1 + 1? | 2 | {cell} | 1 | correct 1 | 0.5 | 3 | False |"


def test_the_table_has_the_lines_of_a_conversation(tmp_path):
    """Oracle: the cell by hand."""
    talk = [called("", add={"a": 1}), result("add", "3")]
    logged(tmp_path, ("grpo", 3, 3), group=GROUP | {"completions": [ONE | {"messages": talk}]})
    assert table_of(tmp_path).split(" | ")[2] == "call  add(a=1)<br>tool  3"


def table_of(workdir):
    """The row of a table of one completion on TensorBoard."""
    (table,) = [
        value.tensor.string_val[0].decode()
        for event in events(workdir, "grpo")
        for value in event.summary.value
        if value.tag.startswith("completions")
    ]
    head, _, row = table.splitlines()
    assert (
        head
        == "| prompt | answer | completion | reward | rewards | advantage | length | truncated |"
    )
    return row
