"""Questions with known answers: a Task, and the Task of a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek_jax.data.questions import distinct
from deepseek_jax.data.sources import load_jsonl_questions


@dataclass(frozen=True)
class Task:
    """Questions to train on, and held-out questions, none of which is in the training set.

    An example is a dict of question and answer, both str, and, where they are known, operands:
    a list of the int in the question.
    """

    train: list
    held_out: list


def gsm8k_task(path: str | Path, num_held_out: int = 256, *, seed: int = 0) -> Task:
    """A Task from a jsonl file in GSM8K's format, with `num_held_out` questions, chosen by seed, held out.

    Raises ValueError as load_jsonl_questions does, and for a file with too few questions.
    """
    return split_task(distinct(load_jsonl_questions(path)), seed, num_held_out)


def split_task(examples: list, seed: int, num_held_out: int):
    """A Task with num_held_out of the examples, chosen by seed, held out. Raises ValueError for too few."""
    if num_held_out >= len(examples):
        raise ValueError(
            f"num_held_out={num_held_out} leaves nothing of {len(examples)} questions to train on; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = [examples[i] for i in order[:num_held_out]]
    return Task([examples[i] for i in order[num_held_out:]], held_out)
