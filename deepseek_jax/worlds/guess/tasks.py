"""Games as questions, and the rule that looks for the number in the last turn."""

from collections.abc import Mapping

import numpy as np

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.guess.corpus import NUMBERS, QUESTION


def guess_task(seed: int, num_held_out: int = 128):
    """Make games in which every number is equally frequent, the held-out ones in another order.

    `seed` sets both orders. The question is the same in all games, as the number is not in it. So
    the held-out games are no others than the training games. If num_held_out is a multiple of the
    numbers, the mean of their turns is over all numbers.
    """
    rng = np.random.default_rng(seed)
    return Task(_games(rng, len(NUMBERS)), _games(rng, num_held_out))


def _games(rng, count):
    rounds = -(-count // len(NUMBERS))
    drawn = np.concatenate([rng.permutation(NUMBERS) for _ in range(rounds)])[:count]
    return [{"question": QUESTION, "answer": str(n), "number": n} for n in drawn.tolist()]


def number_of(example: Mapping):
    """Return the one guess that is right."""
    return example["answer"]


def guessed(completion: str, example: Mapping):
    r"""Return 1.0 if the last turn is the number, else 0.0.

    Args:
        completion: A whole conversation, "7higher\n14lower\n11": the game's answers end in a line
            break.
    """
    return float(completion.rpartition("\n")[2] == example["answer"])
