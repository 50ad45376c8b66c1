"""A task of one's own: a function that makes questions. Copy this file and change it."""

import random


def differences(seed, num_held_out):
    """(training examples, held-out ones), lists of dicts: question, answer, and what else rewards read."""
    pairs = [(a, b) for a in range(3, 30) for b in range(1, a)]
    random.Random(seed).shuffle(pairs)
    examples = [
        {"question": f"What is {a} minus {b}?", "answer": str(a - b), "target": str(a - b)}
        for a, b in pairs
    ]
    return examples[num_held_out:], examples[:num_held_out]
