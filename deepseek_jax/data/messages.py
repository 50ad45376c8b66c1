"""Conversations to learn from: from files, TFDS datasets, or worked examples."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.columns import check_names, plain, rows_of_tfds
from deepseek_jax.data.conversation_forms import as_conversation, parse_conversation
from deepseek_jax.data.records import needing
from deepseek_jax.data.sources import RANDOM_ACCESS_FORMATS, in_order, read
from deepseek_jax.data.stored import is_stored, stored_dataset, stored_records
from deepseek_jax.data.written import build, of_files

# For messages
LINE = (
    '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'
)
DERIVED_FROM = "derived_from"
# The feature with a line's other columns
COLUMNS = "columns"
MESSAGES = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
FEATURES = {"messages": MESSAGES, "weight": np.float32, COLUMNS: tfds.features.Text()}


def read_conversations(
    path: str | Path,
    data_dir: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Sequence:
    """Random access to the conversations of a path of data.records; see conversation_forms for their forms.

    A conversation is a dict of messages, weight and the other columns of its line. columns: our name -> the
    column's, where the data have another. They are written under data_dir as a dataset, on the first call and
    whenever the content has changed (see written.build), and are in an order of their own. A TFDS dataset
    with a feature messages: Sequence({"role": Text(), "content": Text()}), stored as array_record, is read
    where it is. Raises ValueError as read_records does, and, naming file and line, for a record that is not a
    conversation.
    """
    if is_stored(path) and not columns and _has_messages(path):
        return _tfds_conversations(path, split)
    with needing(LINE):
        renames = dict(columns or {})
        dataset = of_files("messages_corpus", path, split, renames, FEATURES, _as_record)
        return Conversations(in_order(build(dataset, data_dir)), path, _columns_of_json)


def worked_conversations(examples: list, worked):
    """Conversations from the examples of data.tasks: the question, and worked(example) as the answer.

    Each has its example's fields too, by which an answer is scored.
    """
    return [example | _answered(example, worked(example)) for example in examples]


def _as_record(place, line):
    """The record of a line of a file: its other columns as JSON."""
    conversation = as_conversation(place, line)
    parts = {name: conversation.pop(name) for name in ("messages", "weight")}
    # ASCII alone: a column may have half of a surrogate pair, which UTF-8 cannot hold
    return parts | {COLUMNS: json.dumps(conversation, allow_nan=False)}


class Conversations:
    """Conversations of a TFDS source, parsed when they are read. path: the source's, for error messages.
    columns_of: a source's record -> the columns of its conversation.
    """

    def __init__(self, source, path: str | Path, columns_of: Callable):
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
    """The columns of a record of _as_record."""
    return json.loads(record[COLUMNS])


def _columns_of_features(place, record):
    """The columns of a record of a dataset of a user's own."""
    others = {name: value for name, value in record.items() if name not in ("messages", "weight")}
    check_names(place, others)
    return plain(rows_of_tfds(others))


def what_it_answers(conversation):
    """A hashable key that conversations share if they answer one question, or rewrites of one.

    The record's derived_from, which synthesis.generated writes; without it, all messages before the last
    answer.
    """
    origin = conversation.get(DERIVED_FROM)
    return (
        origin
        if origin and isinstance(origin, str)
        else tuple((m["role"], m["content"]) for m in conversation["messages"][:-1])
    )


def _outside_in(record):
    """A record with a list of dicts as messages: TFDS stores a sequence of dicts as a dict of sequences."""
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
    asked = example.get("messages") or [{"role": "user", "content": example["question"]}]
    return {"messages": [*asked, {"role": "assistant", "content": answer}], "weight": 1.0}
