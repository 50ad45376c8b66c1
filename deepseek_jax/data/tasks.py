"""Questions with known answers: a task, a file's task, and a stream of them."""

from dataclasses import dataclass

import grain
import numpy as np

from deepseek_jax.data.questions import distinct
from deepseek_jax.data.sources import load_jsonl_questions


@dataclass(frozen=True)
class Task:
    """Questions to train on and, sharing none with them, questions to measure on.

    An example is a dict of question and answer, both str, and, where they are known, operands:
    the list of int that the question names.
    """

    train: list
    held_out: list


def gsm8k_task(path, num_held_out=256, *, seed=0):
    """Questions of a jsonl file in GSM8K's format, `num_held_out` of them, by seed, held out.

    Raises ValueError, as load_jsonl_questions does, for a malformed file, and for one that would leave
    nothing to train on.
    """
    examples = distinct(load_jsonl_questions(path))
    if num_held_out >= len(examples):
        raise ValueError(
            f"num_held_out={num_held_out} leaves nothing of the {len(examples)} "
            f"questions of {path} to train on; set it lower."
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    kept = [examples[i] for i in order[:num_held_out]]
    return Task([examples[i] for i in order[num_held_out:]], kept)


class QuestionStream:
    """Examples without end, each once an epoch, in an order set by `seed` and new each epoch.

    position: how many were taken so far. It is all of the state: save it, and set it to resume.
    """

    def __init__(self, examples, seed):
        if not examples:
            raise ValueError("there are no questions to draw from; give at least one example.")
        self._endless = grain.MapDataset.source(examples).shuffle(seed).repeat()
        self.position = 0

    def take(self, n):
        """The next n examples, as a list."""
        start, self.position = self.position, self.position + n
        return [self._endless[i] for i in range(start, self.position)]
