"""Conversations to learn from: from files, TFDS datasets, or worked examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import FileConfig, TextBuilder, build
from deepseek_jax.data.conversation_forms import as_conversation, parse_conversation
from deepseek_jax.data.sources import RANDOM_ACCESS_FORMATS, read
from deepseek_jax.data.stored import is_stored, stored_dataset, stored_records

DERIVED_FROM = "derived_from"


def read_conversations(
    path: str | Path,
    data_dir: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Sequence:
    """Random access to the conversations of a path of data.records; see conversation_forms for their forms.

    columns: our name -> the column's, where the data have another. They are written under data_dir as a
    dataset, in TFDS's own order, on the first call and whenever the content has changed: see
    builders.build. A TFDS dataset with a feature messages: Sequence({"role": Text(), "content": Text()}),
    stored as array_record, is read where it is. Raises ValueError as read_records does, and, naming file
    and line, for a record that is not a conversation.
    """
    if is_stored(path) and not columns and _has_messages(path):
        return _tfds_conversations(path, split)
    config = FileConfig(path=str(path), split=split, columns=tuple((columns or {}).items()))
    return Conversations(build(MessagesCorpus, config, data_dir), path)


def worked_conversations(examples: list, worked):
    """Conversations from the examples of data.tasks: the question, and worked(example) as the answer.

    Each has its example's fields too, by which an answer is scored.
    """
    return [example | _answered(example, worked(example)) for example in examples]


class MessagesCorpus(TextBuilder):
    """The conversations of files; see read_conversations."""

    def _info(self):
        text = tfds.features.Text()
        message = {"role": text, "content": text}
        features = {"messages": tfds.features.Sequence(message), "weight": np.float32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for number, (place, record) in enumerate(self.builder_config.records()):
            yield number, as_conversation(place, record)


class Conversations:
    """Conversations of a TFDS source, parsed when they are read. path: the source's, for error messages."""

    def __init__(self, source, path: str | Path):
        self._source, self._path = source, path

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index: int):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        pairs = zip(indices, read(self._source, indices), strict=True)
        return [self._parsed(*pair) for pair in pairs]

    def _parsed(self, index, record):
        parsed = parse_conversation(f"{self._path}, record {index}", _outside_in(record))
        if record.get(DERIVED_FROM):
            parsed[DERIVED_FROM] = record[DERIVED_FROM].decode()
        return parsed


def what_it_answers(conversation):
    """A hashable key that conversations share if they answer one question, or rewrites of one.

    The record's derived_from, which synthesis.generated writes; without it, all messages before the last
    answer.
    """
    origin = conversation.get(DERIVED_FROM)
    return origin or tuple((m["role"], m["content"]) for m in conversation["messages"][:-1])


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
    return Conversations(stored_records(builder, split, path), path)


def _answered(example, answer):
    asked = example.get("messages") or [{"role": "user", "content": example["question"]}]
    return {"messages": [*asked, {"role": "assistant", "content": answer}], "weight": 1.0}
