"""Questions with known answers: a Task, and the Task of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek_jax.data.columns import columns_of
from deepseek_jax.data.questions import asked_key, read_questions
from deepseek_jax.parallel.processes import say


@dataclass(frozen=True)
class Task:
    """Questions to train on, and held-out questions: see held_apart.

    An example is a dict as of data.questions; the small worlds' own have fields of their own, such as
    operands, a list of the int in the question.
    """

    train: list
    held_out: list


def file_task(
    path: str | Path,
    num_held_out: int = 256,
    *,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Task:
    """A Task from a path of questions, with `num_held_out` of them, chosen by seed, held out.

    Raises ValueError as read_questions does, and for a file with too few questions.
    """
    return split_task(read_questions(path, split, columns), seed, num_held_out)


def split_task(examples: list, seed: int, num_held_out: int):
    """A Task with num_held_out of the examples, chosen by seed, held out. Raises ValueError for too few."""
    if num_held_out >= len(examples):
        raise ValueError(
            f"num_held_out={num_held_out} leaves nothing of {len(examples)} questions to train on; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = [examples[i] for i in order[:num_held_out]]
    return Task([examples[i] for i in order[num_held_out:]], held_out)


def held_apart(task: Task, plays: bool = False) -> Task:
    """The task without training questions that are held out, too, whose number it says: an accuracy would be
    measured on what was learned.

    plays: the questions are games, which one text may begin, and their columns tell them apart. Raises
    ValueError where no question is left.
    """
    key = _game_key if plays else asked_key
    held_out = set(map(key, task.held_out))
    train = [example for example in task.train if key(example) not in held_out]
    number = len(task.train) - len(train)
    if not number:
        return task
    if not train:
        raise ValueError(
            f"all {number} questions to train on are held out, too: accuracy would be measured on what was "
            "learned; hold out others"
        )
    say(
        f"{number} of {len(task.train)} training questions are held out, too: left out of the training set"
    )
    return Task(train, task.held_out)


def _game_key(example):
    return repr((asked_key(example), sorted(columns_of(example).items())))
