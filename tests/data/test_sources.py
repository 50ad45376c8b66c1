"""The corpus on disk, and questions in jsonl."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.sources import file_documents, hold_out, tfds_documents, tfds_source

ROOT = Path(__file__).resolve().parents[2]


def texts(source):
    return sorted(source[i]["text"].decode() for i in range(len(source)))


class Pages(tfds.core.GeneratorBasedBuilder):
    """A dataset as someone else prepares it: two splits, two features, several files."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    text_feature = "text"

    def _info(self):
        features = {self.text_feature: tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(50), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {self.text_feature: f"page {n}", "n": n}


class Books(Pages):
    text_feature = "book_text"


def prepare(builder, folder, file_format):
    """The folder of the dataset, its training split in three files."""
    builder = builder(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return builder.data_path


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def pages(request, tmp_path_factory):
    return prepare(Pages, tmp_path_factory.mktemp(request.param), request.param)


def test_a_prepared_dataset_is_read_by_its_path(pages):
    """Oracle: the pages that were written, alone and in blocks."""
    assert len(list(Path(pages).glob("*train*"))) == 3
    source = tfds_documents(pages)
    assert texts(source) == sorted(f"page {n}" for n in range(50))
    blocks = source.__getitems__([7, 49, 0])
    assert [x["text"] for x in blocks] == [source[i]["text"] for i in (7, 49, 0)]
    assert texts(tfds_documents(pages, "validation")) == [f"page {n}" for n in range(5)]


@pytest.mark.parametrize(
    ("split", "indices"),
    [
        ("train[:90%]", range(45)),
        ("train[90%:]", range(45, 50)),
        ("train[10:40]", range(10, 40)),  # of three files of 16 or 17
        ("train[:3]+train[-2:]", [0, 1, 2, 48, 49]),
    ],
)
def test_a_slice_of_a_split_is_that_part_of_it_and_no_more(pages, split, indices):
    """Oracle: the documents of the whole split, sliced by hand."""
    whole, part = tfds_documents(pages), tfds_documents(pages, split)
    assert [part[i]["text"] for i in range(len(part))] == [whole[i]["text"] for i in indices]


@pytest.mark.parametrize("split", ["test", "train[", "train[:0]", "train[60:]", "train[5:5]"])
def test_a_split_without_documents_is_refused(pages, split):
    """Oracle: the message names the split, and those that there are."""
    with pytest.raises(ValueError) as error:
        tfds_documents(pages, split)
    assert f"no records in split={split!r}; choose from train, validation" in str(error.value)


def test_a_folder_or_a_dataset_of_another_kind_is_refused(tmp_path):
    """Oracle: the message says what is missing; a format without random access, as its info says."""
    for read in (tfds_documents, tfds_source):
        with pytest.raises(
            ValueError, match=f"^path='{tmp_path}' is not a .* no dataset_info.json"
        ):
            read(tmp_path)
    books = prepare(Books, tmp_path, "array_record")
    with pytest.raises(ValueError, match=r"no feature text: Text\(\); it has .*book_text"):
        tfds_documents(books)
    info = Path(books) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored as tfrecord, which has no random access"):
        tfds_documents(books)


def test_held_out_documents_are_the_last_and_the_others_stay(tmp_path):
    """Oracle: the source, sliced as a list is, for a list and for documents on disk."""
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i}"}) for i in range(10)))
    for source in (
        [{"text": f"{i}"} for i in range(10)],
        file_documents(path, tmp_path / "data"),
    ):
        train, held = hold_out(source, 3)
        whole = [source[i] for i in range(10)]
        assert [train[i] for i in range(len(train))] == whole[:7]
        assert [held[i] for i in range(len(held))] == whole[7:]
        assert held.__getitems__([2, 0]) == [whole[9], whole[7]]
        for part in (train, held):
            with pytest.raises(IndexError):
                part[len(part)]


def test_what_shares_a_key_with_a_held_out_document_is_left_out(capsys):
    """Oracle: by hand: an earlier document with the key of a held-out one, or of a question that is measured,
    is dropped, and their number is said.
    """
    source = [{"text": text, "about": about} for text, about in ("ax", "by", "cz", "dx", "ez")]
    train, held = hold_out(source, 1, lambda record: record["about"])
    assert [record["text"] for record in train] == ["a", "b", "d"]
    train, held = hold_out(source, 2, lambda record: record["about"])
    assert [record["text"] for record in train] == ["b"]
    assert [record["text"] for record in held] == ["d", "e"]
    assert "2 of 3 training records ask what is held out: left out" in capsys.readouterr().out
    train, _ = hold_out(source, 1, lambda record: record["about"], measured=["y", "q"])
    assert [record["text"] for record in train] == ["a", "d"]
    with pytest.raises(ValueError, match="^num_held_out=1 of 4 records leaves nothing to train on"):
        hold_out(source[:1] * 4, 1, lambda record: record["about"])


@pytest.mark.parametrize("num_held_out", [0, -1, 5, 6])
def test_holding_out_nothing_or_everything_is_refused(num_held_out):
    """Oracle: the message names the field and the bounds."""
    with pytest.raises(ValueError, match=f"^num_held_out={num_held_out} .*1..4"):
        hold_out([{"text": "a"}] * 5, num_held_out)


def write_lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


WORKED = "24+48 = <<24+48=72>>72 #### wrong\n#### 72"


def test_questions_keep_the_answer_after_the_mark_without_commas(tmp_path):
    """Oracle: by hand, on lines of GSM8K's form."""
    path = write_lines(
        tmp_path / "questions.jsonl",
        {"question": "How many?", "answer": WORKED},
        "",
        {"question": "How much?", "answer": "#### 1,234,000 "},
        {"question": "Below?", "answer": "x\n#### -3"},
    )
    assert read_questions(path) == [
        {"question": "How many?", "answer": "72", "solution": WORKED},
        {"question": "How much?", "answer": "1234000", "solution": "#### 1,234,000 "},
        {"question": "Below?", "answer": "-3", "solution": "x\n#### -3"},
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "How many?"}', "'answer'"),
        ('{"question": " ", "answer": "#### 3"}', "'question'"),
        ('{"question": 3, "answer": "#### 3"}', "'question'"),
        ('{"question": "How many?", "answer": "3"}', "#### <answer>"),
        ('{"question": "How many?", "answer": "3 ####"}', "#### <answer>"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_number(tmp_path, line, complaint):
    """Oracle: the message says which file, which line and what is wrong."""
    good = {"question": "How many?", "answer": "#### 3"}
    path = write_lines(tmp_path / "questions.jsonl", good, line, good)
    with pytest.raises(ValueError, match=f"questions.jsonl, line 2.*{complaint}"):
        read_questions(path)


def test_a_question_carries_what_rewards_read(tmp_path):
    """Oracle: the fields as written; a program's question has cases in place of an answer."""
    cases = [{"input": "1 2", "output": "3"}]
    path = write_lines(
        tmp_path / "programs.jsonl",
        json.dumps({"question": "Add.", "test_cases": cases}),
        json.dumps({"question": "1+1?", "answer": "2 #### 2", "language": "zh"}),
    )
    assert read_questions(path) == [
        {"question": "Add.", "answer": "", "test_cases": cases},
        {"question": "1+1?", "answer": "2", "language": "zh", "solution": "2 #### 2"},
    ]
