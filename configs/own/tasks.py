"""Tasks of one's own: functions that make questions. Copy this file and change it."""

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


def games(seed, num_held_out):
    """The same question for each game. An environment's random numbers depend on all columns of a line."""
    examples = [{"question": "Let us play.", "answer": "", "game": n} for n in range(512)]
    random.Random(seed).shuffle(examples)
    return examples[num_held_out:], examples[:num_held_out]
