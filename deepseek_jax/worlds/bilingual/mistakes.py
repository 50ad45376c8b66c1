"""Mistakes of the bilingual world's writers: wrong numbers, wrong steps, and junk."""

from itertools import product

from deepseek_jax.worlds.bilingual import puzzles
from deepseek_jax.worlds.bilingual import words as bilingual

# Pieces of junk, fewest and most
JUNK_LENGTHS = (2, 12)
# A wrong number is off by 1..5
LARGEST_SLIP = 5
# Signs of a countdown, in the order of its search
SIGNS = tuple(product((1, -1), repeat=2))


def wrong_answer(rng, puzzle: puzzles.Puzzle):
    """A sum that is off by a few, or signs that miss the target."""
    if puzzle.kind == "sum":
        return str(_near(rng, puzzle.value))
    return puzzles.expression(puzzle.numbers, pick(rng, _wrong_signs(puzzle)))


def slip(rng, puzzle: puzzles.Puzzle):
    """(steps, answer) of a wrong working. A sum has one false step, whose error the later steps repeat. A
    countdown's steps are true, but its search says "yes" where the target is missed.
    """
    if puzzle.kind == "countdown":
        signs = pick(rng, _wrong_signs(puzzle))
        # The search as if these signs were right: it may pass over the signs that really are
        steps = puzzles.Puzzle("countdown", puzzle.numbers, signs).steps()
        return steps, puzzles.expression(puzzle.numbers, signs)
    # Draw again until every number in the working is one of this world's
    while True:
        steps = puzzle.steps()
        at = int(rng.integers(len(steps)))
        off = _near(rng, steps[at][4]) - steps[at][4]
        steps = [
            (role, a + off * (i > at), sign, b, c + off * (i >= at), verdict)
            for i, (role, a, sign, b, c, verdict) in enumerate(steps)
        ]
        if all(0 <= step[4] <= bilingual.LARGEST_NUMBER for step in steps):
            return steps, str(steps[-1][4])


def near_miss(rng, answer: str):
    """An answer with one of its words replaced by another of the same table, such as the wrong animal."""
    found = [
        (row[column], [other[column] for other in table if other != row])
        for table in bilingual.WORD_TABLES
        for row in table
        for column in range(len(bilingual.LANGUAGES))
        if row[column] in answer
    ]
    right, wrong = pick(rng, found)
    return answer.replace(right, pick(rng, wrong), 1)


def pick(rng, items):
    """One of `items`."""
    return items[rng.integers(len(items))]


def junk(rng):
    """A few random pieces of this world."""
    length = rng.integers(JUNK_LENGTHS[0], JUNK_LENGTHS[1] + 1)
    return "".join(pick(rng, bilingual.PIECES) for _ in range(length))


def _wrong_signs(puzzle):
    return [signs for signs in SIGNS if signs != puzzle.signs]


def _near(rng, number):
    """Another number of this world, at a distance of 1..LARGEST_SLIP."""
    low, high = max(0, number - LARGEST_SLIP), min(bilingual.LARGEST_NUMBER, number + LARGEST_SLIP)
    return pick(rng, [n for n in range(low, high + 1) if n != number])
