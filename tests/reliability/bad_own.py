"""Mistakes in what a user brings: rewards, graders and tasks by file, columns, everyday data, hub names."""

import json

import pyarrow
import pyarrow.parquet

from tests.reliability.goods import lines, write

OWN = "train grpo_small --config.rewards={'mine.py:f':1.0}"
TASK = "train grpo_small --config.data.task=mine.py:make"
FILE = "train grpo_small --config.data.num_held_out=2 --config.data.path="
EVALUATE = "evaluate --checkpoint=model --data=arithmetic --accuracy="
F = "config.rewards.mine.py:f: "


def code(text):
    """prepare: mine.py with this text."""
    return write("mine.py", text)


def table(name, *rows, columns=("question", "answer")):
    """prepare: a parquet file of these rows."""

    def prepare(good, here):
        arrays = {c: pyarrow.array([row[c] for row in rows], pyarrow.string()) for c in columns}
        pyarrow.parquet.write_table(pyarrow.table(arrays), here / name)

    return prepare


def doubled(name, *columns):
    """prepare: a parquet file of a row with these columns."""

    def prepare(good, here):
        arrays = [pyarrow.array([column]) for column in columns]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, columns), here / name)

    return prepare


SUMS = [{"prompt": f"What is 2 + {i}?", "target": str(2 + i)} for i in range(9)]
LACKING = [*SUMS[:6], {"prompt": "What is 9 + 9?"}, *SUMS[7:]]
COLUMNS = " --config.data.columns={'question':'prompt','answer':'target'}"

BROUGHT = [
    (OWN, "config.rewards: there is no file mine.py, of mine.py:f, in "),
    (
        OWN,
        F + "mine.py has no function f; it has g",
        code("def g(completion, example): return 1.0"),
    ),
    (OWN, F + "mine.py has no function f; it has none", code("f = 3")),
    (OWN, F + "mine.py cannot be imported: mine.py, line 2: ZeroDivisionError", code("\n1 / 0")),
    (OWN, F + "mine.py cannot be imported: mine.py, line 1: SyntaxError", code("def f(")),
    (OWN, F + "mine.py cannot be imported: mine.py, line 1: SystemExit", code("raise SystemExit")),
    (
        OWN,
        F + "returned 'good'; return a finite number, or None for not scored; it was tried",
        code("def f(completion, example): return 'good'"),
    ),
    (
        OWN,
        F + "returned nan; return a finite number",
        code("def f(completion, example): return float('nan')"),
    ),
    (
        OWN,
        F + "returned 1 values for 2 completions; return one for each",
        code("def f(completions, **columns): return [1.0]"),
    ),
    (
        OWN,
        F + "mine.py, line 2: KeyError: 'no'",
        code("def f(completion, example):\n    raise KeyError('no')"),
    ),
    (
        OWN,
        F + "returned 1e+30; rewards must be within +-1e+06: scale it; it was tried",
        code("def f(completion, example): return 1e30"),
    ),
    (
        OWN,
        F
        + "returned None, not scored, for all own answers of the questions that it was tried on, and no",
        code("def f(completion, example): return None"),
    ),
    (
        OWN,
        F + "returned None, not scored, for all own answers",
        code("def f(completions, **columns): return [None] * len(completions)"),
    ),
    (
        OWN,
        F
        + "gives two completions 2 and 1 together, 2 and 1 turned around and 1 and 2 each alone: return",
        code("def f(completions, **c): return [float(len(text)) for text in completions][::-1]"),
    ),
    (
        OWN,
        F
        + "gives two completions ...; where it compares completions, or is random, write f.whole_batch",
        code("def f(completions, **c): return sorted(float(len(text)) for text in completions)"),
    ),
    (
        OWN,
        F + "gives two completions ... each alone",
        code(
            "import random\ndef f(completions, **c): return [random.random() for _ in completions]"
        ),
    ),
    (OWN, F + "is async, which is not", code("async def f(completions, **columns): return []")),
    (
        OWN,
        F + "takes trainer_state, the state of TRL's trainer",
        code("def f(completions, trainer_state, **columns): return []"),
    ),
    (OWN, F + "takes x; define it as NAME(completion, example)", code("def f(x): return 1.0")),
    (
        OWN,
        F + "takes 'target', which the question '...' lacks; it has question, answer",
        code("def f(completions, target): return [1.0 for _ in target]"),
    ),
    (
        OWN,
        F + "log_extra('x') got 1 values for 2 completions; give one for each",
        code("def f(completions, log_extra, **c):\n log_extra('x', [1])\n return [1.0] * 2"),
    ),
    (OWN, F + "it ended its process", code("import os\ndef f(completion, example): os._exit(1)")),
    (
        "train grpo_small --config.rewards={'corect':1.0} --config.accuracy=corect",
        "config.rewards.corect=1.0 is not of a reward; did you mean correct? ... FILE.py:NAME",
    ),
    (
        "train grpo_small --config.accuracy=mine.py:f",
        "config.accuracy='mine.py:f' is not one of rewards: correct, correct_reasoning",
        code("def f(completion, example): return 1.0"),
    ),
    (
        "train grpo_small --config.rewards={'none_of_mine.rules:f':1.0} "
        "--config.accuracy=none_of_mine.rules:f",
        "config.accuracy: there is no module none_of_mine.rules, of none_of_mine.rules:f",
    ),
    (TASK, "config.data.task: there is no file mine.py, of mine.py:make, in "),
    (TASK, "config.data.task='mine.py:make': mine.py has no function make", code("x = 1")),
    (
        TASK,
        "config.data.task='mine.py:make': returned [{'question': '1?'}]; return (training",
        code("def make(seed, num_held_out): return [{'question': '1?'}]"),
    ),
    (
        TASK,
        "config.data.task='mine.py:make', training example 0 is no dict",
        code("def make(seed, num_held_out): return ['1?'], ['2?']"),
    ),
    (
        TASK,
        "config.data.task='mine.py:make', training example 0 has no text under 'question'",
        code("def make(seed, num_held_out): return [{'q': '1?'}], [{'q': '2?'}]"),
    ),
    (
        TASK,
        "config.data.task='mine.py:make' gives 1 training and 0 held-out examples",
        code("def make(seed, num_held_out): return [{'question': '1?'}], []"),
    ),
    (
        TASK,
        "config.data: all 3 questions to train on are held out, too: accuracy would be measured on what was",
        code(
            "def make(seed, n):\n    a = [dict(question=f'{i}?', answer='1') for i in range(3)]\n"
            "    return a, a"
        ),
    ),
    (
        "train grpo_small --config.data.task=arithmetik",
        "config.data.task='arithmetik' is not a world's task; did you mean arithmetic? ... FILE.py",
    ),
    (EVALUATE + "mine.py:f", "--accuracy: there is no file mine.py, of mine.py:f, in "),
    (
        FILE + "q.jsonl" + COLUMNS,
        "config.data: q.jsonl, line 7 has no column 'target'; it has prompt",
        lines("q.jsonl", *LACKING),
    ),
    (
        FILE + "q.jsonl --config.data.columns={'question':'text'}",
        "config.data: q.jsonl, line 1 has no column 'text'; it has prompt, target",
        lines("q.jsonl", *SUMS),
    ),
    (
        FILE + "q.jsonl",
        "config.data: q.jsonl, line 1 has a column 'effort', the name of a part of the prompt",
        lines("q.jsonl", {"question": "1?", "answer": "1", "effort": 3}),
    ),
    (
        FILE + "q.jsonl",
        "config.data: q.jsonl, line 1 has no text under 'question'; its columns are text, label",
        lines("q.jsonl", {"text": "1?", "label": "1"}),
    ),
    (FILE + "q.parquet", "config.data.path='q.parquet' holds no records", table("q.parquet")),
    (
        FILE + "q.parquet",
        "config.data: q.parquet is no parquet file, or is damaged",
        write("q.parquet", b"PAR1PAR1"),
    ),
    (
        FILE + "q.parquet",
        "config.data: q.parquet has the column 'answer' twice; rename one of them, or leave it out",
        doubled("q.parquet", "question", "answer", "answer"),
    ),
    (
        FILE + "q.csv",
        "config.data: q.csv has the column 'answer' twice",
        write("q.csv", "question,answer,answer\n1?,2,3\n"),
    ),
    (
        FILE + "q.csv",
        "config.data: q.csv, line 3 has not one field for each of question, answer; quote",
        write("q.csv", "question,answer\n1?,2\n1, 2 or 3?,3\n"),
    ),
    (
        FILE + "q.json",
        "config.data: q.json is not a list of objects",
        write("q.json", json.dumps({"question": "1?", "answer": "1"})),
    ),
    (FILE + "q.xlsx", "config.data.path='q.xlsx' ends in '.xlsx', which is", write("q.xlsx", "")),
    (
        FILE + "org/questions",
        "config.data.path: there is nothing at org/questions...hf download org/questions",
    ),
    (FILE + "org/questions:main@0123", "config.data.path: there is nothing at org/questions"),
    (
        "train sft_small --config.data.path=q.jsonl",
        "config.data: q.jsonl, line 1 has from='bot'; allowed: human, user, gpt",
        lines("q.jsonl", {"conversations": [{"from": "bot", "value": "1"}]}),
    ),
    (
        "train sft_small --config.data.path=q.jsonl",
        "config.data: q.jsonl, line 1 is no conversation; its columns are question, answer",
        lines("q.jsonl", {"question": "1?", "answer": "1"}),
    ),
]
