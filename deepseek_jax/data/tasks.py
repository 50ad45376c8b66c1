"""Questions with known answers: a Task, and the Task of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek_jax.data.questions import read_questions


@dataclass(frozen=True)
class Task:
    """Questions to train on, and held-out questions, none of which is in the training set.

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
