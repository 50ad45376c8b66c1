"""Questions to have answered, of a jsonl file or a TFDS dataset.

An example is a dict: question, the last thing asked; messages, where more was said before it; answer, where
it is known; and what rewards may read besides, language and test_cases.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from deepseek_jax.data.builders import json_lines
from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.conversations import last_prompt, render_conversation
from deepseek_jax.data.messages import parse_conversation, read_conversations
from deepseek_jax.data.sources import load_jsonl_questions, read, tfds_source

READ = ("question", "answer", "language")  # the texts of a TFDS dataset that are kept


def read_questions(path, split="train"):
    """The examples of a jsonl file, or of a split of a TFDS dataset, as a list without repetitions.

    A line of the file is a question in GSM8K's format, as of sources.load_jsonl_questions, or a conversation
    {"messages": [...]}, as of messages.parse_conversation: its last question is asked, behind whatever was
    said before, and the last message is the answer. A dataset, the folder of one version, has such messages,
    or texts of question, answer and language, of which the first is needed.
    Raises ValueError as these do, and for a dataset without either.
    """
    if Path(path).is_dir():
        return distinct(_of_dataset(path, split))
    if split != "train":
        raise ValueError(
            f"path='{path}' is a file, which has no split={split!r}; set split to 'train'"
        )
    if Path(path).is_file():
        first = next(json_lines(path), None)
        if first is not None and "messages" in first[1]:
            read_lines = (parse_conversation(*line) for line in json_lines(path))
            return distinct(map(_of_conversation, read_lines))
    return distinct(load_jsonl_questions(path))


def evaluation_texts(name):
    """(questions, solutions), lists of str, of an evaluation set: the solutions with their working.

    name: a jsonl file, or a TFDS dataset and one of its splits, "FOLDER@test". As of read_questions.
    """
    path, _, split = name.rpartition("@") if "@" in name else (name, "", "train")
    examples = read_questions(path, split)
    questions = [example["question"] for example in examples]
    if (
        Path(path).is_file() and "messages" not in examples[0]
    ):  # read_questions leaves the working out
        return questions, [str(record.get("answer", "")) for _, record in json_lines(path)]
    return questions, [example.get("answer", "") for example in examples]


def distinct(examples):
    """The examples without those that ask what an earlier one asks, as a list."""
    first = {}
    for example in examples:
        first.setdefault(asked_key(example), example)
    return list(first.values())


def asked_messages(example):
    """What an example's prompt tells, messages of which the question is the last."""
    return example.get("messages") or [{"role": "user", "content": example["question"]}]


def render_question(tokenizer, example, *, template, opening=""):
    """Ids of the prompt of an example, up to where the answer goes on from `opening`.

    template: as of render_prompt. opening: text that every answer begins with, "<think>\\n" for one that has
    to think; not put a second time where the chat template opens so by itself.
    Raises ValueError as render_prompt and render_conversation do.
    """
    messages = asked_messages(example)
    if len(messages) == 1:
        ids = render_prompt(tokenizer, messages[0]["content"], template=template)
    else:
        reply = {"role": "assistant", "content": messages[-1]["content"]}  # cut off again
        rendered = render_conversation(tokenizer, [*messages, reply], template=template)
        ids = last_prompt(*rendered)
    opened = tokenizer.encode(opening) if opening else []
    for size in range(len(opened), 0, -1):  # of it, what the template has written
        if ids[-size:] == opened[:size]:
            return ids + opened[size:]
    return ids + opened


def asked_key(example):
    """What two examples that ask the same have in common: all that is said before the answer, hashable."""
    return tuple((message["role"], message["content"]) for message in asked_messages(example))


def _of_conversation(record):
    *asked, reply = record["messages"]
    return {"question": asked[-1]["content"], "answer": reply["content"], "messages": asked}


def _of_dataset(path, split):
    source, features = tfds_source(path, split)
    if "messages" in features:
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
