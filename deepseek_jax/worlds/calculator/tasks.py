"""Long sums as questions, and the rule that looks for their answer in the last turn."""

from collections.abc import Mapping

import numpy as np

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.arithmetic.corpus import held_out
from deepseek_jax.worlds.calculator import corpus

# There are 81 million pairs of operands to draw from
NUM_TRAIN = 8192


def calculator_task(seed: int, num_held_out: int = 256):
    """Make sums of two numbers of four digits, all distinct.

    The held-out pairs are those for which held_out is true, so no document of the corpus asks for
    them. `seed` draws both sets.
    """
    rng = np.random.default_rng(seed)
    train: dict[tuple[int, ...], dict] = {}
    held_out_examples: dict[tuple[int, ...], dict] = {}
    while len(train) < NUM_TRAIN or len(held_out_examples) < num_held_out:
        operands = corpus.draw_operands(rng)
        examples, max_examples = (
            (held_out_examples, num_held_out) if held_out(operands) else (train, NUM_TRAIN)
        )
        if len(examples) < max_examples:
            examples[tuple(operands)] = _example(operands)
    return Task([*train.values()], [*held_out_examples.values()])


def _example(operands):
    question, answer = corpus.question(operands), str(sum(operands))
    return {"question": question, "answer": answer, "operands": operands}


def direct(example: Mapping):
    """Return the answer without a call."""
    return example["answer"]


def answered(completion: str, example: Mapping):
    r"""Return 1.0 if the last turn is example["answer"] and nothing else, else 0.0.

    Args:
        completion: A whole conversation, "add(3120, 4805)7925\n7925": a tool's answer ends in a
            line break, so the last turn begins after the last one. A call without an answer is not
            a number.
    """
    return float(completion.rpartition("\n")[2] == example["answer"])
