"""Corpora of documents by random access: Python's modules, a user's files, TFDS datasets.

`hold_out` splits any of them into a training part and a held-out part.
"""

import re
import sys
import sysconfig
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.order import hashed_order
from deepseek_jax.data.records import needing
from deepseek_jax.data.stored import RandomAccess, stored_dataset, stored_records
from deepseek_jax.data.written import Dataset, build, of_files
from deepseek_jax.parallel.processes import say

RANDOM_ACCESS_FORMATS = ("array_record", "parquet")
READ_AT_ONCE = 1024
TEXT = {"text": tfds.features.Text()}


def python_documents(data_dir: str | Path) -> "Documents":
    """Open the source code of Python's standard modules as documents, {"text": bytes}.

    This is real text that every machine has. It is written under `data_dir` on the first call.
    """
    modules = python_modules()
    name = f"python_corpus/python_{'_'.join(map(str, sys.version_info[:3]))}_{len(modules)}_modules"

    def records():
        for path in modules:
            yield {"text": path.read_text(encoding="utf-8")}

    return in_order(build(Dataset(name, TEXT, records), data_dir), [path.name for path in modules])


def python_modules() -> list[Path]:
    """Return the paths of the standard library's top-level modules, sorted by name.

    Empty modules and modules that are not UTF-8 are left out.
    """
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
) -> "Documents":
    """Open the documents of a path of data.records, with random access to {"text": bytes}.

    On the first call, and whenever the content has changed, they are written under `data_dir` as a
    dataset: see `written.build`. They are in the order of hashes of their numbers, see `in_order`.

    Args:
        path: A path of data.records. A record is {"text": "..."}; other columns are ignored.
        data_dir: The folder for the written dataset.
        split: The split to read.
        columns: Our name -> the name of the column in the data, such as {"text": "content"}.

    Raises:
        ValueError: As `read_records` does. Also for a record without a text; the message names file
            and line.
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


def in_order(source: RandomAccess, keys: Iterable | None = None) -> "Documents":
    """Return the records of a source in the order of their keys' hashes.

    Args:
        source: Random access to records.
        keys: A key for each record; None for the records' numbers.
    """
    return Documents(source, hashed_order(range(len(source)) if keys is None else keys))


def tfds_documents(path: str | Path, split: str = "train") -> RandomAccess:
    """Open the documents {"text": bytes, ...} of a prepared TFDS dataset, with random access.

    Args:
        path, split: See `tfds_source`.

    Raises:
        ValueError: As `tfds_source` does. Also for a dataset without a feature "text".
    """
    source, features = tfds_source(path, split)
    if not isinstance(features.get("text"), tfds.features.Text):
        raise ValueError(f"path='{path}' has no feature text: Text(); it has {', '.join(features)}")
    return source


def tfds_source(path: str | Path, split: str = "train") -> tuple[RandomAccess, dict]:
    """Return (records, features) of a prepared TFDS dataset, without TensorFlow.

    Args:
        path: The folder of one version, which contains dataset_info.json.
        split: A split of the dataset or a slice of one, such as "train[:90%]" or "train[1000:]".

    Returns:
        records, with random access, and features, {name: TFDS feature}. A dataset stored as parquet
        is read into memory.

    Raises:
        ValueError: The file format has no random access. Also as `stored_dataset` and
            `stored_records` do.
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


def _slice_files(source, instructions):
    """Return the records of a split that may use only a part of a file.

    TFDS 4.9 reads parquet files whole.
    """
    ends = np.cumsum([instruction.examples_in_shard for instruction in instructions])
    assert ends[-1] == len(source)
    starts = [
        end - shard.examples_in_shard + shard.skip
        for shard, end in zip(instructions, ends, strict=True)
    ]
    indices = [
        np.arange(start, start + shard.take)
        for shard, start in zip(instructions, starts, strict=True)
    ]
    return Documents(source, np.concatenate(indices).tolist())


def hold_out(
    source: RandomAccess,
    num_held_out: int,
    key: Callable[[dict], Hashable] | None = None,
    measured: Iterable[Hashable] = (),
) -> tuple["Documents", "Documents"]:
    """Split a source into (training part, held-out part): the held-out part is the last documents.

    The sources in this file are in a shuffled order, so their last documents are like the others.
    No document is in both parts, but two documents of equal text may be in different parts, unless
    `key` prevents it.

    Args:
        source: Random access to documents.
        num_held_out: Number of held-out documents.
        key: key(record) returns a value that only one part may have, such as the question of a
            conversation. A record that shares its key with a held-out record is dropped from the
            training part, and a line on the console gives the number of dropped records.
        measured: More keys that the training part must not have.

    Raises:
        ValueError: One of the parts would have no document.
    """
    if not 0 < num_held_out < len(source):
        raise ValueError(
            f"num_held_out={num_held_out} of {len(source)} documents leaves nothing on one side; set it "
            f"within 1..{len(source) - 1}"
        )
    border = len(source) - num_held_out
    held_out = Documents(source, range(border, len(source)))
    # Return early: without a key no record has to be read
    if key is None:
        return Documents(source, range(border)), held_out
    held_out_keys = {key(record) for record in _each(held_out)} | set(measured)
    numbered_records = enumerate(_each(Documents(source, range(border))))
    indices = [i for i, record in numbered_records if key(record) not in held_out_keys]
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
    """Yield the records of a source one by one, read in blocks."""
    for start in range(0, len(source), READ_AT_ONCE):
        yield from read(source, list(range(start, min(start + READ_AT_ONCE, len(source)))))


class Documents:
    """Some documents of a source, by random access.

    Args:
        source: Random access to documents.
        indices: The numbers of the documents in the source.
    """

    def __init__(self, source: RandomAccess, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._source[self._indices[index]]

    def __getitems__(self, indices):
        return read(self._source, [self._indices[i] for i in indices])


def read(source: RandomAccess, indices: list[int]) -> list:
    """Return the documents of a source at `indices`.

    They are read in one call if the source has __getitems__.
    """
    read_many = getattr(source, "__getitems__", None)
    return read_many(indices) if read_many else [source[i] for i in indices]
