"""A jsonl file as a dataset on disk, by one process and by two."""

import json

import pytest

from deepseek_jax.data.records import read_records
from deepseek_jax.data.sources import file_documents, tfds_documents
from tests.processes import run_two

TEXTS = ["Größe\n", "", "😀 \x00", "same", "same", "a" * 10_000]

BUILD = """
import sys
import jax
process, port, path, data_dir = int(sys.argv[1]), sys.argv[2], *sys.argv[3:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.data.sources import file_documents
try:
    source = file_documents(path, data_dir)
except ValueError as error:
    print("refused", error)
else:
    print("read", sorted(source[i]["text"] for i in range(len(source))))
"""


def write_lines(path, *lines):
    """A file of lines, given as bytes or as objects to write as JSON."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(lines))
    return path


def texts(source):
    return sorted(source[i]["text"].decode() for i in range(len(source)))


def test_documents_are_the_texts_of_the_file(tmp_path):
    """Oracle: the texts that were written; blank lines and other keys are ignored."""
    lines = [{"text": text, "url": "x"} for text in TEXTS]
    path = write_lines(tmp_path / "web.jsonl", lines[0], b"", b" \r", *lines[1:])
    assert texts(file_documents(path, tmp_path / "data")) == sorted(TEXTS)


def test_a_second_call_reads_what_is_there_and_an_edited_file_is_another_dataset(tmp_path):
    """Oracle: names and times of the files, and the texts of each version of the file."""
    path, data = tmp_path / "web pages.jsonl", tmp_path / "data"
    for text in ("old", "new", "old"):
        write_lines(path, {"text": text})
        assert texts(file_documents(path, data)) == [text]
    assert len(list(data.glob("file_corpus/web_pages_*"))) == 2
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    file_documents(path, data)
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}


def test_the_dataset_on_disk_is_one_that_tfds_reads_by_its_path(tmp_path):
    """Oracle: the documents that file_documents returns."""
    source = file_documents(
        write_lines(tmp_path / "a.jsonl", *({"text": t} for t in TEXTS)), tmp_path
    )
    (folder,) = tmp_path.glob("file_corpus/a_*/1.0.0")
    assert texts(tfds_documents(folder)) == texts(source)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a', "not JSON"),
        (b'{"text": "\xff"}', "not JSON: 'utf-8' codec"),
        ({"body": "a"}, r"no text under 'text'; it has \['body'\]"),
        ({"text": 3}, "no text under 'text'"),
        ({"text": None}, "no text under 'text'"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_number_each_time(tmp_path, line, complaint):
    """Oracle: the message; the second attempt reads no part of the file either."""
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"}, b"", line)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"a.jsonl, line 3.*{complaint}"):
            file_documents(path, tmp_path)


def test_a_missing_file_and_one_without_documents_are_refused(tmp_path):
    """Oracle: the message names the file."""
    with pytest.raises(ValueError, match="^path='.*absent.jsonl' is not a file"):
        file_documents(tmp_path / "absent.jsonl", tmp_path)
    path = write_lines(tmp_path / "empty.jsonl", b"", b"")
    with pytest.raises(ValueError, match="empty.jsonl' holds no records"):
        file_documents(path, tmp_path)


def test_json_lines_say_where_each_record_stands(tmp_path):
    """Oracle: by hand."""
    path = write_lines(tmp_path / "a.jsonl", {"x": 1}, b"", {"y": "\u2028"})  # a line break to str
    assert list(read_records(path)) == [
        (f"{path}, line 1", {"x": 1}),
        (f"{path}, line 3", {"y": "\u2028"}),
    ]


@pytest.mark.slow
def test_two_processes_read_one_dataset_and_fail_together(tmp_path):
    """Oracle: the texts of the file; for a malformed line the same error on both, and no hang."""
    good = write_lines(tmp_path / "good.jsonl", {"text": "b"}, {"text": "a"})
    bad = write_lines(tmp_path / "bad.jsonl", {"text": "b"}, {"text": 3})
    for path, said in ((good, "read [b'a', b'b']"), (bad, f"{bad}, line 2 has no text")):
        statuses, outputs = run_two(BUILD, path, tmp_path)
        assert statuses == [0, 0], outputs
        assert all(said in output for output in outputs), outputs
