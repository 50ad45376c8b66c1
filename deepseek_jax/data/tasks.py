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
    """Questions to train on, and held-out questions.

    An example is a dict as in data.questions. The examples of the small worlds have more fields,
    such as operands, a list of the int in the question. See `held_apart` for questions that are in
    both lists.

    Attributes:
        train: Examples to train on.
        held_out: Examples to measure on.
    """

    train: list[dict]
    held_out: list[dict]


def file_task(
    path: str | Path,
    num_held_out: int = 256,
    *,
    seed: int = 0,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> Task:
    """Read questions into a Task that holds out num_held_out of them.

    Args:
        path: See `read_questions`.
        num_held_out: Number of held-out questions.
        seed: Seed of the choice of held-out questions.
        split, columns: See `read_questions`.

    Raises:
        ValueError: As `read_questions` does. Also for a file with too few questions.
    """
    return split_task(read_questions(path, split, columns), seed, num_held_out)


def split_task(examples: list[dict], seed: int, num_held_out: int) -> Task:
    """Return a Task with num_held_out of the examples, chosen by seed, held out.

    Raises:
        ValueError: There are not more than num_held_out examples.
    """
    if num_held_out >= len(examples):
        raise ValueError(
            f"num_held_out={num_held_out} leaves nothing of {len(examples)} questions to train on; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = [examples[i] for i in order[:num_held_out]]
    return Task([examples[i] for i in order[num_held_out:]], held_out)


def held_apart(task: Task, plays: bool = False) -> Task:
    """Return the task without training questions that are also held out.

    Otherwise an accuracy would be measured on what was learned. If any are removed, a line on the
    console gives their number.

    Args:
        task: The task to check.
        plays: The questions are games. Several games may begin with the same text; their columns
            then distinguish them.

    Raises:
        ValueError: No training question remains.
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
