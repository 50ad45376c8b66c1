"""A run without its data: the error names the field and shows a line of the file that is needed."""

import contextlib
from pathlib import Path

import pytest

from tests.in_process import launched
from tests.quick import others_slow

ROOT = Path(__file__).resolve().parents[2]
CONVERSATION = '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", '
QUESTION = '{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 5"}'
GENERAL = "{'num_steps': 1, 'per_step': 1, 'rewards': {'correct': 1.0}, 'path': 'no.jsonl'}"
SOURCES = "['arithmetic', 'no.jsonl']"
PATH = "--config.data.path=no.jsonl"
ASKED = ["--config.data.task=None", "--config.keep.decontaminate=()", PATH]


TASKS = "--config.tasks={'talks': {'path': 'no.jsonl', 'num_held_out': 4}}"


MISSING = [
    ("distill_small", [TASKS], "config.tasks.talks.path='no.jsonl'", CONVERSATION),
    ("sft_small", [PATH], "config.data.path='no.jsonl'", CONVERSATION),
    ("grpo_small", [PATH], "config.data.path='no.jsonl'", QUESTION),
    ("grpo_small", [f"--config.general={GENERAL}"], "config.general.path='no.jsonl'", QUESTION),
    ("generate_small", ASKED, "config.data.path='no.jsonl'", QUESTION),
    (
        "generate_small",
        ["--config.keep.decontaminate=['no.jsonl']"],
        "config.keep.decontaminate='no.jsonl'",
        QUESTION,
    ),
    ("reward_model_small", [PATH], "config.data.path='no.jsonl'", '"chosen": "5"'),
    (
        "pretrain_small",
        [f"--config.data.sources={SOURCES}", "--config.mesh={'data': 4, 'tensor': 2}"],
        "config.data.sources='no.jsonl'",
        '{"text": "A document."}',
    ),
]


@pytest.mark.parametrize("config, args, field, line", others_slow(MISSING, MISSING[2]))
def test_missing_data_is_named_by_its_field_with_a_line_of_the_file(
    tmp_path, config, args, field, line
):
    """Oracle: the field by hand; no traceback, exit status 2."""
    file = ROOT / "configs" / f"{config}.py"
    status, err = started("train", tmp_path, f"--config={file}", *args)
    assert status == 2 and err.startswith(f"error: {field}") and line in err, err
    assert "Traceback" not in err


@pytest.mark.slow
def test_missing_data_of_an_evaluation_is_named_by_its_flag_with_a_line_of_the_file(tmp_path):
    """Oracle: by hand."""
    status, err = started("evaluate", tmp_path, "--checkpoint=x", "--data=no.jsonl")
    assert (
        status == 2 and err.startswith("error: --data='no.jsonl' is not a file") and QUESTION in err
    )


def started(program, folder, *args):
    """(exit status, stderr) of a program, started from a folder."""
    with contextlib.chdir(folder):
        end = launched(program, *args)
    return end.status, end.err
