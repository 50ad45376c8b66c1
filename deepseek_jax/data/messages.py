"""Conversations to learn from: read from files and TFDS datasets, or made of worked examples."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.columns import check_names, plain, rows_of_tfds
from deepseek_jax.data.conversation_forms import as_conversation, parse_conversation
from deepseek_jax.data.records import needing
from deepseek_jax.data.sources import RANDOM_ACCESS_FORMATS, in_order, read
from deepseek_jax.data.stored import RandomAccess, is_stored, stored_dataset, stored_records
from deepseek_jax.data.written import build, of_files

# Example line for error messages
LINE = (
    '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'
)
DERIVED_FROM = "derived_from"
# The feature that holds the other columns of a line, as JSON
COLUMNS = "columns"
MESSAGES = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
FEATURES = {"messages": MESSAGES, "weight": np.float32, COLUMNS: tfds.features.Text()}


def read_conversations(
    path: str | Path,
    data_dir: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> "Conversations":
    """Open the conversations of a path that data.records reads, with random access.

    On the first call, and whenever the content has changed, they are written under data_dir as a
    dataset (see `written.build`). They are in the order of hashes of their numbers, see
    `sources.in_order`, and not in the order of the file.

    A TFDS dataset is read in place if it is stored as array_record, has a feature messages:
    Sequence({"role": Text(), "content": Text()}), and `columns` is empty.

    Args:
        path: A path of data.records, with records in one of `conversation_forms.FORMS`.
        data_dir: The folder for the written dataset.
        split: The split to read.
        columns: Our name -> the name of the column in the data, where they differ.

    Returns:
        Dicts: messages, weight, and the other columns of the line.

    Raises:
        ValueError: As `read_records` does. Also for a record that is not a conversation; the
            message then names file and line.
    """
    if is_stored(path) and not columns and _has_messages(path):
        return _tfds_conversations(path, split)
    with needing(LINE):
        renames = dict(columns or {})
        dataset = of_files("messages_corpus", path, split, renames, FEATURES, _as_record)
        return Conversations(in_order(build(dataset, data_dir)), path, _columns_of_json)


def worked_conversations(examples: list[dict], worked: Callable[[dict], str]) -> list[dict]:
    """Make conversations of examples: the question, and worked(example) as its answer.

    Examples are dicts as of data.tasks. A conversation keeps the fields of its example, by which an
    answer is scored.
    """
    return [example | _answered(example, worked(example)) for example in examples]


def _as_record(place, line):
    """Return the record to write for a line; its other columns become one JSON text."""
    conversation = as_conversation(place, line)
    fields = {name: conversation.pop(name) for name in ("messages", "weight")}
    # json.dumps escapes what is not ASCII: a column may have half of a surrogate pair, which is not UTF-8
    return fields | {COLUMNS: json.dumps(conversation, allow_nan=False)}


class Conversations:
    """Conversations of a TFDS source, by random access; each is parsed when it is read.

    Args:
        source: Random access to records with messages.
        path: The path of the source, for error messages.
        columns_of: columns_of(place, record) returns the columns of the record's conversation.
    """

    def __init__(
        self,
        source: RandomAccess,
        path: str | Path,
        columns_of: Callable[[str, dict], dict],
    ):
        self._source, self._path, self._columns_of = source, path, columns_of

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        pairs = zip(indices, read(self._source, indices), strict=True)
        return [self._parsed(*pair) for pair in pairs]

    def _parsed(self, index, record):
        place = f"{self._path}, record {index}"
        return self._columns_of(place, record) | parse_conversation(place, _outside_in(record))


def _columns_of_json(place, record):
    """Return the columns of a record that _as_record made."""
    return json.loads(record[COLUMNS])


def _columns_of_features(place, record):
    """Return the columns of a record of a user's TFDS dataset."""
    other_columns = {
        name: value for name, value in record.items() if name not in ("messages", "weight")
    }
    check_names(place, other_columns)
    return plain(rows_of_tfds(other_columns))


def what_it_answers(conversation: Mapping) -> str | tuple:
    """Return a key that is equal for answers to the same question, or to its rewrites.

    The key is the record's derived_from, which synthesis.generated writes. Without it, the key is
    all messages before the last answer.
    """
    origin = conversation.get(DERIVED_FROM)
    return (
        origin
        if origin and isinstance(origin, str)
        else tuple((m["role"], m["content"]) for m in conversation["messages"][:-1])
    )


def _outside_in(record):
    """Return the record with its messages as a list of dicts.

    TFDS stores a sequence of dicts as a dict of sequences.
    """
    messages = record["messages"]
    rows = zip(*messages.values(), strict=True)
    return record | {"messages": [dict(zip(messages, row, strict=True)) for row in rows]}


def _has_messages(path):
    features = stored_dataset(path).info.features
    fields = getattr(features["messages"] if "messages" in features else None, "feature", None)
    return isinstance(fields, tfds.features.FeaturesDict) and {"role", "content"} <= {*fields}


def _tfds_conversations(path, split):
    builder = stored_dataset(path)
    file_format = builder.info.file_format.value
    if file_format != RANDOM_ACCESS_FORMATS[0]:
        raise ValueError(f"path='{path}' is stored as {file_format}; prepare it as array_record")
    return Conversations(stored_records(builder, split, path), path, _columns_of_features)


def _answered(example, answer):
    messages = example.get("messages") or [{"role": "user", "content": example["question"]}]
    return {"messages": [*messages, {"role": "assistant", "content": answer}], "weight": 1.0}
