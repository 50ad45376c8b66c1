"""Corpora of documents, by random access."""

import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.order import hashed_order
from deepseek_jax.data.records import needing
from deepseek_jax.data.stored import stored_dataset, stored_records
from deepseek_jax.data.written import Dataset, build, of_files
from deepseek_jax.parallel.processes import say

RANDOM_ACCESS_FORMATS = ("array_record", "parquet")
READ_AT_ONCE = 1024
TEXT = {"text": tfds.features.Text()}


def python_documents(data_dir: str | Path):
    """Random access to the source of Python's standard modules, {"text": bytes}, written under `data_dir`:
    real text that every machine has.
    """
    modules = python_modules()
    name = f"python_corpus/python_{'_'.join(map(str, sys.version_info[:3]))}_{len(modules)}_modules"

    def records():
        for path in modules:
            yield {"text": path.read_text(encoding="utf-8")}

    return in_order(build(Dataset(name, TEXT, records), data_dir), [path.name for path in modules])


def python_modules():
    """Paths of the standard library's top-level modules, sorted by name; without empty or non-UTF-8 ones."""
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in folder.glob("*.py") if _is_text(path))


def _is_text(path):
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except ValueError:
        return False


def file_documents(
    path: str | Path,
    data_dir: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
):
    """Random access to the documents {"text": bytes} of a path of data.records, in an order of their own.

    A record is {"text": "..."}; other columns are ignored. columns: our name -> the column's, such as
    {"text": "content"}. The documents are written under `data_dir` as a dataset on the first call, and again
    whenever the content has changed: see written.build. Raises ValueError as read_records does, and, naming
    file and line, for a record without a text.
    """
    with needing('{"text": "A document."}'):
        dataset = of_files("file_corpus", path, split, dict(columns or {}), TEXT, _as_document)
        return in_order(build(dataset, data_dir))


def _as_document(place, record):
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{place} has no text under 'text'; it has {sorted(record)}.")
    # JSON can hold half of a surrogate pair, and UTF-8 cannot
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{place} has half of a surrogate pair, which is no character; remove it.")
    return {"text": text}


def in_order(source, keys: Iterable | None = None):
    """The records of a source in the order of their keys' hashes; by default the keys are their numbers."""
    return Documents(source, hashed_order(range(len(source)) if keys is None else keys))


def tfds_documents(path: str | Path, split: str = "train"):
    """Random access to the documents {"text": bytes, ...} of a prepared TFDS dataset, see tfds_source.

    Raises ValueError as that does, and for a dataset without a feature "text".
    """
    source, features = tfds_source(path, split)
    if not isinstance(features.get("text"), tfds.features.Text):
        raise ValueError(f"path='{path}' has no feature text: Text(); it has {', '.join(features)}")
    return source


def tfds_source(path: str | Path, split: str = "train"):
    """(random access to the records of a prepared TFDS dataset, its features), without TensorFlow.

    path: the folder of one version, which holds dataset_info.json. split: one of the dataset's, slices
    too, such as "train[:90%]" or "train[1000:]". A dataset stored as parquet is read into memory.
    Raises ValueError for a file format without random access, and as stored_dataset and stored_records do.
    """
    builder = stored_dataset(path)
    file_format = builder.info.file_format.value
    if file_format not in RANDOM_ACCESS_FORMATS:
        raise ValueError(
            f"path='{path}' is stored as {file_format}, which has no random access; prepare it with "
            f"file_format={' or '.join(RANDOM_ACCESS_FORMATS)}"
        )
    source = stored_records(builder, split, path)
    if file_format == "parquet":
        source = _slice_files(source, builder.info.splits[split].file_instructions)
    return source, dict(builder.info.features.items())


def _slice_files(source, parts):
    """The records of a split: TFDS 4.9 reads parquet files whole, although a split may be part of a file."""
    ends = np.cumsum([part.examples_in_shard for part in parts])
    assert ends[-1] == len(source)
    starts = [end - p.examples_in_shard + p.skip for p, end in zip(parts, ends, strict=True)]
    indices = [np.arange(s, s + p.take) for p, s in zip(parts, starts, strict=True)]
    return Documents(source, np.concatenate(indices).tolist())


def hold_out(source, num_held_out: int, key=None, measured=()):
    """Split a source into two that share no document: (all but the last num_held_out, the last ones).

    The sources above are shuffled on disk, so their last documents are like the others. Two documents of
    equal text may be on different sides. key(record) -> a value that may be on one side only, such as the
    question of a conversation: a record whose key a held-out record has is dropped from the first part, which
    says their number. measured: keys that are kept out of the first part as well. Raises ValueError unless
    both parts have a document.
    """
    if not 0 < num_held_out < len(source):
        raise ValueError(
            f"num_held_out={num_held_out} of {len(source)} documents leaves nothing on one side; set it "
            f"within 1..{len(source) - 1}"
        )
    border = len(source) - num_held_out
    held_out = Documents(source, range(border, len(source)))
    # Without a key no record has to be read
    if key is None:
        return Documents(source, range(border)), held_out
    kept_out = {key(record) for record in _each(held_out)} | set(measured)
    shown = enumerate(_each(Documents(source, range(border))))
    indices = [i for i, record in shown if key(record) not in kept_out]
    if not indices:
        raise ValueError(
            f"num_held_out={num_held_out} of {len(source)} records leaves nothing to train on: each of the "
            "others asks what is held out or measured; lower it, or measure on other questions"
        )
    if len(indices) < border:
        say(
            f"{border - len(indices)} of {border} training records ask what is held out: left out of the "
            "training set"
        )
    return Documents(source, indices), held_out


def _each(source):
    """The records of a source, one by one, read in blocks."""
    for start in range(0, len(source), READ_AT_ONCE):
        yield from read(source, list(range(start, min(start + READ_AT_ONCE, len(source)))))


class Documents:
    """Some documents of a source, by random access. indices: their numbers, a sequence of int."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._source[self._indices[index]]

    def __getitems__(self, indices):
        return read(self._source, [self._indices[i] for i in indices])


def read(source, indices):
    """The documents of a source at `indices`, a list of int; read in one call where the source can."""
    many = getattr(source, "__getitems__", None)
    return many(indices) if many else [source[i] for i in indices]
