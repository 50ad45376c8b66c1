"""The corpus on disk, and questions in jsonl."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deepseek_jax.data.arithmetic import CorpusMix, write_document
from deepseek_jax.data.sources import arithmetic_corpus, load_jsonl_questions

DEFAULT_MIX = CorpusMix()
ROOT = Path(__file__).resolve().parents[2]


def texts(source):
    return sorted(source[i]["text"].decode() for i in range(len(source)))


def written(num_documents, seed, mix=DEFAULT_MIX):
    rng = np.random.default_rng(seed)
    return sorted(write_document(rng, mix) for _ in range(num_documents))


def test_corpus_holds_the_documents_of_its_seed(tmp_path):
    """Oracle: write_document in a loop; the order on disk is tfds's own."""
    source = arithmetic_corpus(tmp_path, num_documents=300, seed=3)
    assert len(source) == 300
    assert texts(source) == written(300, 3)


def test_a_second_call_reads_what_the_first_one_wrote(tmp_path):
    """Oracle: names and modification times of the files."""
    arithmetic_corpus(tmp_path, num_documents=50, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = arithmetic_corpus(tmp_path, num_documents=50, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert texts(source) == written(50, 0)


def test_other_settings_are_another_dataset_in_the_same_folder(tmp_path):
    """Oracle: write_document under each setting, read back after all of them were built."""
    mix = CorpusMix(fact_tables=1.0)
    settings = [(50, 0, DEFAULT_MIX), (50, 1, DEFAULT_MIX), (60, 0, DEFAULT_MIX), (50, 0, mix)]
    for _ in range(2):
        for num_documents, seed, mix in settings:
            source = arithmetic_corpus(tmp_path, num_documents=num_documents, seed=seed, mix=mix)
            assert texts(source) == written(num_documents, seed, mix)


def test_a_killed_build_is_built_anew(tmp_path):
    """Oracle: write_document in a loop, after SIGKILL while the documents were being written."""
    arguments = f"{str(tmp_path)!r}, num_documents=30_000, seed=5"
    program = "from deepseek_jax.data.sources import arithmetic_corpus as build; build({})"
    process = subprocess.Popen([sys.executable, "-c", program.format(arguments)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (halves := list(tmp_path.glob("*/*/incomplete.*"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert halves[0].exists()
    source = arithmetic_corpus(tmp_path, num_documents=30_000, seed=5)
    assert texts(source) == written(30_000, 5)


def test_a_corpus_of_nothing_is_refused(tmp_path):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="num_documents=0"):
        arithmetic_corpus(tmp_path, num_documents=0, seed=0)


def write_lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_questions_keep_the_answer_after_the_mark_without_commas(tmp_path):
    """Oracle: by hand, on lines of GSM8K's form."""
    path = write_lines(
        tmp_path / "questions.jsonl",
        {"question": "How many?", "answer": "24+48 = <<24+48=72>>72 #### wrong\n#### 72"},
        "",
        {"question": "How much?", "answer": "#### 1,234,000 "},
        {"question": "Below?", "answer": "x\n#### -3"},
    )
    assert load_jsonl_questions(path) == [
        {"question": "How many?", "answer": "72"},
        {"question": "How much?", "answer": "1234000"},
        {"question": "Below?", "answer": "-3"},
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "How', "not JSON"),
        ('["How many?", "#### 3"]', "not a JSON object"),
        ('{"question": "How many?"}', "'answer'"),
        ('{"question": " ", "answer": "#### 3"}', "'question'"),
        ('{"question": "How many?", "answer": "3"}', "#### <answer>"),
        ('{"question": "How many?", "answer": "3 ####"}', "#### <answer>"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_number(tmp_path, line, complaint):
    """Oracle: the message says which file, which line and what is wrong."""
    good = {"question": "How many?", "answer": "#### 3"}
    path = write_lines(tmp_path / "questions.jsonl", good, line, good)
    with pytest.raises(ValueError, match=f"questions.jsonl, line 2.*{complaint}"):
        load_jsonl_questions(path)


def test_a_missing_or_empty_file_of_questions_is_refused(tmp_path):
    """Oracle: the message names the file."""
    with pytest.raises(ValueError, match="no file .*absent.jsonl"):
        load_jsonl_questions(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="empty.jsonl holds no questions"):
        load_jsonl_questions(write_lines(tmp_path / "empty.jsonl", ""))
