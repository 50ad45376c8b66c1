"""Where examples come from: corpora of documents, by random access, and questions in jsonl."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import (
    JsonlConfig,
    JsonlCorpus,
    PythonConfig,
    PythonCorpus,
    build,
    json_lines,
)

RANDOM_ACCESS_FORMATS = ("array_record", "parquet")
READ_AT_ONCE = 1024
# A line of a jsonl file, for messages
DOCUMENT = '{"text": "A document."}'
QUESTION = '{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 5"}'


def python_documents(data_dir):
    """Random access to the source of Python's standard modules, {"text": bytes}, built under `data_dir`."""
    return build(PythonCorpus, PythonConfig(), data_dir)


def jsonl_documents(path, data_dir):
    """Random access to the documents {"text": bytes} of a jsonl file, in an order of TFDS's own.

    A line is {"text": "..."}; other keys are left out. The file is written under `data_dir` as a
    dataset on the first call, and again whenever its content is another. How: builders.build.
    Raises ValueError for a missing file, a file without documents, and, naming file and line, a
    line that is no JSON object with a text.
    """
    _check_file(path, DOCUMENT)
    if next(json_lines(path), None) is None:
        raise ValueError(f"path='{path}' holds no documents; give lines such as {DOCUMENT}")
    return build(JsonlCorpus, JsonlConfig(path=str(path)), data_dir)


def tfds_documents(path, split="train"):
    """Random access to the documents {"text": bytes, ...} of a prepared TFDS dataset, as tfds_source.

    Raises ValueError as that does, and for a dataset without a feature "text".
    """
    source, features = tfds_source(path, split)
    if not isinstance(features.get("text"), tfds.features.Text):
        raise ValueError(f"path='{path}' has no feature text: Text(); it has {', '.join(features)}")
    return source


def tfds_source(path, split="train"):
    """(random access to the records of a prepared TFDS dataset, its features), without TensorFlow.

    path: the folder of one version, which holds dataset_info.json. split: one of TFDS's, slices
    too, as "train[:90%]" or "train[1000:]". A dataset stored as parquet is read into memory.
    Raises ValueError for a folder without a dataset, a split that it lacks or without documents, and a
    file format without random access.
    """
    if not (Path(path) / "dataset_info.json").is_file():
        raise ValueError(
            f"path='{path}' is not a TFDS dataset: there is no dataset_info.json; set it to the folder of a "
            "version, as DATA_DIR/NAME/1.0.0, or to a jsonl file"
        )
    builder = tfds.builder_from_directory(path)
    file_format = builder.info.file_format.value
    if file_format not in RANDOM_ACCESS_FORMATS:
        raise ValueError(
            f"path='{path}' is stored as {file_format}, which has no random access; prepare it with "
            f"file_format={' or '.join(RANDOM_ACCESS_FORMATS)}"
        )
    try:
        parts = builder.info.splits[split].file_instructions
        if not parts:
            raise ValueError("the slice is empty")
        source = builder.as_data_source(split=split)
    except ValueError as error:
        raise ValueError(
            f"path='{path}' has no documents in split={split!r}; choose of "
            f"{', '.join(builder.info.splits)}, or a slice: {error}"
        ) from error
    source = _slice_files(source, parts) if file_format == "parquet" else source
    return source, dict(builder.info.features.items())


def _slice_files(source, parts):
    """The part of each file that a split takes: of parquet, TFDS 4.9 reads the files whole."""
    ends = np.cumsum([part.examples_in_shard for part in parts])
    assert ends[-1] == len(source)
    starts = [end - p.examples_in_shard + p.skip for p, end in zip(parts, ends, strict=True)]
    indices = [np.arange(s, s + p.take) for p, s in zip(parts, starts, strict=True)]
    return Documents(source, np.concatenate(indices).tolist())


def hold_out(source, num_held_out, key=None):
    """Part a source in two that share no document: -> (all but the last num_held_out, those).

    A text that the source itself repeats may stand on both sides. key(record) -> what is to stand on one side
    alone, such as what a conversation answers: of the first part, records are left out that share it with one
    held out. The sources above are shuffled on disk, so that their last documents are like the others.
    Raises ValueError unless both parts have a document.
    """
    if not 0 < num_held_out < len(source):
        raise ValueError(
            f"num_held_out={num_held_out} of {len(source)} documents leaves nothing on one side; set it "
            f"within 1..{len(source) - 1}"
        )
    border = len(source) - num_held_out
    held_out = Documents(source, range(border, len(source)))
    if key is None:
        return Documents(source, range(border)), held_out
    kept_out = {key(record) for record in _each(held_out)}
    shown = enumerate(_each(Documents(source, range(border))))
    indices = [i for i, record in shown if key(record) not in kept_out]
    if not indices:
        raise ValueError(
            f"num_held_out={num_held_out} of {len(source)} records holds out something of what each of the "
            "others is about; lower it"
        )
    return Documents(source, indices), held_out


def _each(source):
    """The records of a source, one by one, read by the block."""
    for start in range(0, len(source), READ_AT_ONCE):
        yield from read(source, list(range(start, min(start + READ_AT_ONCE, len(source)))))


class Documents:
    """Some documents of a source, by random access. indices: which, a sequence of int."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[self._indices[index]]

    def __getitems__(self, indices):
        return read(self._source, [self._indices[i] for i in indices])


def read(source, indices):
    """The documents of a source at `indices`, a list of int, read at once where the source can."""
    many = getattr(source, "__getitems__", None)
    return many(indices) if many else [source[i] for i in indices]


def load_jsonl_questions(path):
    """Questions of a jsonl file in GSM8K's format (arXiv:2110.14168): dicts of question, answer.

    A line is {"question": "...", "answer": "<working> #### 1,072"}. The answer kept is the text
    after the last ####, without commas: "1072". A line may carry what rewards read: "language", as
    rewards.language says, and "test_cases", as rewards.program, with which it needs no answer.
    Raises ValueError naming the file and the line that is not so, or the file that is missing or
    holds no question.
    """
    _check_file(path, QUESTION)
    examples = [_parse_question(place, record) for place, record in json_lines(path)]
    if not examples:
        raise ValueError(f"path='{path}' holds no questions; give lines such as {QUESTION}")
    return examples


def _check_file(path, example):
    if not Path(path).is_file():
        message = f"path='{path}' is not a file; set it to a jsonl file of lines such as {example}"
        raise ValueError(message)


def _parse_question(place, record):
    more = {key: record[key] for key in ("language", "test_cases") if key in record}
    needed = ("question",) if "test_cases" in more else ("question", "answer")
    for key in needed:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(f"{place} has no text under {key!r}; it has {sorted(record)}.")
    _, mark, answer = record.get("answer", "").rpartition("####")
    answer = answer.strip().replace(",", "")
    if "answer" in needed and not (mark and answer):
        raise ValueError(f"{place}: the answer has no final '#### <answer>'.")
    return {"question": record["question"], "answer": answer} | more
