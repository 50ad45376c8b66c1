"""Long sums as questions, and the rule that looks for their answer in the last turn."""

from collections.abc import Mapping

import numpy as np

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.arithmetic.corpus import held_out
from deepseek_jax.worlds.calculator import corpus

# Drawn from 81 million pairs of operands
NUM_TRAIN = 8192


def calculator_task(seed: int, num_held_out: int = 256):
    """Sums of two numbers of four digits, all distinct. The held-out pairs are those for which
    held_out is true, so no document of the corpus asks them. `seed` draws both.
    """
    rng = np.random.default_rng(seed)
    train, kept = {}, {}
    while len(train) < NUM_TRAIN or len(kept) < num_held_out:
        operands = corpus.draw_operands(rng)
        examples, most = (kept, num_held_out) if held_out(operands) else (train, NUM_TRAIN)
        if len(examples) < most:
            examples[tuple(operands)] = _example(operands)
    return Task([*train.values()], [*kept.values()])


def _example(operands):
    question, answer = corpus.question(operands), str(sum(operands))
    return {"question": question, "answer": answer, "operands": operands}


def direct(example: Mapping):
    """An answer without a call."""
    return example["answer"]


def answered(completion: str, example: Mapping):
    r"""1.0 if the last turn is the number example["answer"] and nothing else; else 0.0.

    completion: a whole conversation, "add(3120, 4805)7925\n7925": what a tool answers ends in a line break,
    so the last turn begins after the last one. A call that is still to be answered is no number.
    """
    return float(completion.rpartition("\n")[2] == example["answer"])
