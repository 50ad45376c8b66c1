"""Questions for a model to answer, from a jsonl file or a TFDS dataset.

An example is a dict: question, the last user message; messages, if others come before it; answer, if it
is known; and the fields language and test_cases, if there are any, which rewards read.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from deepseek_jax.data.builders import json_lines
from deepseek_jax.data.chat import asked_messages
from deepseek_jax.data.messages import parse_conversation, read_conversations
from deepseek_jax.data.sources import load_jsonl_questions, read, tfds_source
from deepseek_jax.files import as_path

# The text features that a TFDS dataset may have
READ = ("question", "answer", "language")


def read_questions(path: str | Path, split: str = "train") -> list[dict]:
    """The distinct examples of a jsonl file, or of a split of a TFDS dataset, as a list.

    A line of the file is a question in GSM8K's format, see sources.load_jsonl_questions, or a conversation
    {"messages": [...]}, see messages.parse_conversation: its last message is the answer, and all before it
    are the prompt. A dataset is the folder of one version. It has such messages, or the texts question
    and optionally answer and language.
    Raises ValueError as these do, and for a dataset without either.
    """
    if as_path(path).is_dir():
        return distinct(_of_dataset(path, split))
    if split != "train":
        raise ValueError(
            f"path='{path}' is a file, which has no split={split!r}; set split to 'train'"
        )
    if as_path(path).is_file():
        first = next(json_lines(path), None)
        if first is not None and "messages" in first[1]:
            read_lines = (parse_conversation(*line) for line in json_lines(path))
            return distinct(map(_of_conversation, read_lines))
    return distinct(load_jsonl_questions(path))


def evaluation_texts(name: str):
    """(questions, solutions), lists of str, of an evaluation set; the solutions include their working.

    name: a jsonl file, or a TFDS dataset and one of its splits, "FOLDER@test"; read by read_questions.
    """
    path, _, split = name.rpartition("@") if "@" in name else (name, "", "train")
    examples = read_questions(path, split)
    questions = [example["question"] for example in examples]
    # read_questions drops the working of a question in GSM8K's format
    if as_path(path).is_file() and "messages" not in examples[0]:
        return questions, [str(record.get("answer", "")) for _, record in json_lines(path)]
    return questions, [example.get("answer", "") for example in examples]


def distinct(examples):
    """The examples without those that ask the same as an earlier one, as a list."""
    first = {}
    for example in examples:
        first.setdefault(asked_key(example), example)
    return list(first.values())


def asked_key(example):
    """A hashable key that examples share if they ask the same: all messages before the answer."""
    return tuple((message["role"], message["content"]) for message in asked_messages(example))


def _of_conversation(record):
    *asked, reply = record["messages"]
    return {"question": asked[-1]["content"], "answer": reply["content"], "messages": asked}


def _of_dataset(path, split):
    source, features = tfds_source(path, split)
    if "messages" in features:
        # Only a jsonl file is written under a data_dir
        conversations = read_conversations(path, None, split)
        return map(_of_conversation, read(conversations, list(range(len(conversations)))))
    kept = [name for name in READ if isinstance(features.get(name), tfds.features.Text)]
    if "question" not in kept:
        raise ValueError(
            f"path='{path}' has neither a feature messages nor question: Text(); it has "
            f"{', '.join(features)}"
        )
    records = read(source, list(range(len(source))))
    return ({name: record[name].decode() for name in kept} for record in records)
