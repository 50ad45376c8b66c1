"""Mistakes of the bilingual world's writers: wrong numbers, wrong steps, and junk.

Tests: tests/worlds/bilingual/test_corpus.py, tests/worlds/bilingual/test_preferences.py.
"""

from itertools import product

from deepseek_jax.worlds.bilingual import puzzles
from deepseek_jax.worlds.bilingual import words as bilingual

# Fewest and most pieces of junk
JUNK_LENGTHS = (2, 12)
# A wrong number differs by 1..5
LARGEST_SLIP = 5
# Signs of a countdown, in the order of its search
SIGNS = tuple(product((1, -1), repeat=2))


def wrong_answer(rng, puzzle: puzzles.Puzzle):
    """Draw a sum that differs by a few, or signs that miss the target."""
    if puzzle.kind == "sum":
        return str(_near(rng, puzzle.value))
    return puzzles.expression(puzzle.numbers, pick(rng, _wrong_signs(puzzle)))


def slip(rng, puzzle: puzzles.Puzzle):
    """Make a wrong working: (steps, answer).

    A sum has one false step, which the later steps carry on. A countdown's steps are true, but its
    search says "yes" although it misses the target.
    """
    if puzzle.kind == "countdown":
        signs = pick(rng, _wrong_signs(puzzle))
        # Search as if these signs were right, which may pass over the signs that really are right
        steps = puzzles.Puzzle("countdown", puzzle.numbers, signs).steps()
        return steps, puzzles.expression(puzzle.numbers, signs)
    # Draw again until every number in the working belongs to this world
    while True:
        steps = puzzle.steps()
        wrong_index = int(rng.integers(len(steps)))
        error = _near(rng, steps[wrong_index][4]) - steps[wrong_index][4]
        steps = [
            (role, a + error * (i > wrong_index), sign, b, c + error * (i >= wrong_index), verdict)
            for i, (role, a, sign, b, c, verdict) in enumerate(steps)
        ]
        if all(0 <= step[4] <= bilingual.LARGEST_NUMBER for step in steps):
            return steps, str(steps[-1][4])


def near_miss(rng, answer: str):
    """Replace one word of an answer by another of the same table, such as the wrong animal."""
    candidates = [
        (row[column], [other[column] for other in table if other != row])
        for table in bilingual.WORD_TABLES
        for row in table
        for column in range(len(bilingual.LANGUAGES))
        if row[column] in answer
    ]
    right_word, wrong_words = pick(rng, candidates)
    return answer.replace(right_word, pick(rng, wrong_words), 1)


def pick(rng, items):
    """Draw one of `items`."""
    return items[rng.integers(len(items))]


def junk(rng):
    """Draw a few random pieces of this world."""
    length = rng.integers(JUNK_LENGTHS[0], JUNK_LENGTHS[1] + 1)
    return "".join(pick(rng, bilingual.PIECES) for _ in range(length))


def _wrong_signs(puzzle):
    return [signs for signs in SIGNS if signs != puzzle.signs]


def _near(rng, number):
    """Draw another number of this world, at a distance of 1..LARGEST_SLIP."""
    low, high = max(0, number - LARGEST_SLIP), min(bilingual.LARGEST_NUMBER, number + LARGEST_SLIP)
    return pick(rng, [n for n in range(low, high + 1) if n != number])
