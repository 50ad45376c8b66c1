"""Conversations to learn from: from a jsonl file, a TFDS dataset, or worked examples."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.builders import JsonlConfig, TextBuilder, build, json_lines
from deepseek_jax.data.sources import RANDOM_ACCESS_FORMATS, read
from deepseek_jax.data.stored import stored_dataset, stored_records
from deepseek_jax.files import as_path

ROLES = ("system", "user", "assistant")
DERIVED_FROM = "derived_from"
# A line of a jsonl file, for error messages
EXAMPLE = (
    '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'
)


def read_conversations(path: str | Path, data_dir: str | Path, split: str = "train") -> Sequence:
    """Random access to the conversations of a jsonl file or a TFDS dataset; see parse_conversation.

    A line of the file is {"messages": [{"role": "user", "content": "..."}, ...], "weight": 1.0}; weight
    is optional, and other keys are ignored. The file is written under data_dir as a dataset, in TFDS's own
    order, on the first call and whenever its content has changed: see builders.build. The path of a dataset
    is the folder of one version; it has a feature messages: Sequence({"role": Text(), "content": Text()})
    and may have a scalar weight. split: one of the dataset's, slices too.
    Raises ValueError where the path has neither, for a missing or empty split, for other features, and,
    naming file and line, for a record that is not a conversation.
    """
    if as_path(path).is_dir():
        return _tfds_conversations(path, split)
    if not as_path(path).is_file():
        raise ValueError(
            f"path='{path}' does not exist; set it to the folder of a TFDS dataset, or to a jsonl file of "
            f"lines such as {EXAMPLE}"
        )
    if split != "train":
        raise ValueError(
            f"path='{path}' is a file, which has no split={split!r}; set split to 'train'"
        )
    if next(json_lines(path), None) is None:
        raise ValueError(f"path='{path}' holds no conversations; give lines such as {EXAMPLE}")
    return Conversations(build(MessagesCorpus, JsonlConfig(path=str(path)), data_dir), path)


def parse_conversation(place: str, record):
    """{"messages": [{"role": str, "content": str}, ...], "weight": float} of a record, checked.

    An optional system message, then user and assistant in turns, the assistant last. weight: how much each
    of its tokens counts, 1.0 by default. Raises ValueError, with the place, for any other record.
    """
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place} has no list under 'messages'; it has {sorted(record)}.")
    messages = [_parse_message(f"{place}, message {i}", m) for i, m in enumerate(messages, 1)]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"{place} has the roles {', '.join(roles)}; after a system message, if there is one, user "
            "and assistant must take turns, the assistant last."
        )
    return {"messages": messages, "weight": _parse_weight(place, record.get("weight", 1.0))}


def worked_conversations(examples: list, worked):
    """Conversations from the examples of data.tasks: the question, and worked(example) as the answer.

    Each has its example's fields too, by which an answer is scored.
    """
    return [example | _answered(example, worked(example)) for example in examples]


class MessagesCorpus(TextBuilder):
    """The conversations of a jsonl file; see read_conversations."""

    def _info(self):
        text = tfds.features.Text()
        message = {"role": text, "content": text}
        features = {"messages": tfds.features.Sequence(message), "weight": np.float32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        lines = json_lines(self.builder_config.path)
        for number, (place, record) in enumerate(lines):
            yield number, parse_conversation(place, record)


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


def _tfds_conversations(path, split):
    builder = stored_dataset(path, f"a jsonl file of lines such as {EXAMPLE}")
    features = builder.info.features
    fields = getattr(features["messages"] if "messages" in features else None, "feature", None)
    if not isinstance(fields, tfds.features.FeaturesDict) or not {"role", "content"} <= {*fields}:
        raise ValueError(
            f"path='{path}' has no feature messages: Sequence of role and content; it has "
            f"{', '.join(features)}"
        )
    file_format = builder.info.file_format.value
    if file_format != RANDOM_ACCESS_FORMATS[0]:
        raise ValueError(f"path='{path}' is stored as {file_format}; prepare it as array_record")
    return Conversations(stored_records(builder, split, path), path)


def _parse_message(place, message):
    if not isinstance(message, Mapping):
        raise ValueError(f"{place} is no object with role and content: {str(message)[:80]}")
    role, content = (_text(place, key, message.get(key)) for key in ("role", "content"))
    if role not in ROLES:
        raise ValueError(f"{place} has the role {role!r}; allowed: {', '.join(ROLES)}.")
    return {"role": role, "content": content}


def _text(place, key, value):
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: its {key} is not UTF-8 text: {error}") from error
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has no text under {key!r}.")
    # JSON can hold half of a surrogate pair, and UTF-8 cannot
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{place} has half of a surrogate pair, which is no character; remove it.")
    return value


def _parse_weight(place, weight):
    # A bool is an instance of int
    number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    # The loss weighs tokens in float32
    range32 = np.finfo(np.float32)
    if not number or not float(range32.tiny) <= weight <= float(range32.max):
        raise ValueError(f"{place} has weight={weight!r}; set a finite number above 0.")
    return float(weight)


def _answered(example, answer):
    asked = example.get("messages") or [{"role": "user", "content": example["question"]}]
    return {"messages": [*asked, {"role": "assistant", "content": answer}], "weight": 1.0}
