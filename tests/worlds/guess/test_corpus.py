"""The games of the corpus, replayed."""

from collections import Counter
from math import sqrt

import numpy as np

from deepseek_jax.worlds.guess import corpus
from deepseek_jax.worlds.guess.corpus import GuessMix
from deepseek_jax.worlds.guess.environment import MOST_TURNS

NUM_GAMES = 4000


def games(mix, seed=0):
    rng = np.random.default_rng(seed)
    return [corpus.write_document(rng, mix) for _ in range(NUM_GAMES)]


def replayed(game):
    """(the guesses; for each whether the answers before it leave it), with every answer checked against
    the last guess, which is the number where the game is short.
    """
    asked, guesses = zip(*(turn.split("\n") for turn in game), strict=True)
    guesses, left, fits = list(map(int, guesses)), set(corpus.NUMBERS), []
    assert asked[0] == corpus.QUESTION
    for answer, guess, before in zip(asked, guesses, [None, *guesses], strict=False):
        if answer == "higher":
            left = {n for n in left if n > before}
        elif answer == "lower":
            left = {n for n in left if n < before}
        fits.append(guess in left)
    return guesses, left, fits


def test_a_game_ends_with_a_number_that_all_answers_leave():
    """Oracle: the set of numbers that the answers leave, filtered one by one."""
    ends = 0
    for game in games(GuessMix()):
        guesses, left, fits = replayed(game)
        assert len(game) <= MOST_TURNS and set(guesses) <= set(corpus.NUMBERS) and left
        ends += len(game) == MOST_TURNS
        assert fits[-1] or len(game) == MOST_TURNS
    assert 0 < ends < NUM_GAMES / 10


def test_no_guess_is_outside_what_is_left_where_none_is_careless():
    """Oracle: the same sets; turns by the formula of random binary search trees, 2(1 + 1/n)H_n - 3 = 4.18,
    within 5 standard errors.
    """
    played = [replayed(game) for game in games(GuessMix(careless=0.0))]
    assert all(all(fits) for _, _, fits in played)
    turns = np.array([len(guesses) for guesses, _, _ in played])
    expected = 2 * (1 + 1 / 16) * sum(1 / k for k in corpus.NUMBERS) - 3
    assert abs(turns.mean() - expected) < 5 * turns.std() / sqrt(NUM_GAMES)


def test_numbers_are_equally_often_first():
    """Oracle: 1/16 of the first guesses each, within 5 standard deviations."""
    first = Counter(replayed(game)[0][0] for game in games(GuessMix()))
    assert set(first) == set(corpus.NUMBERS)
    share = 1 / 16
    assert all(abs(n / NUM_GAMES - share) < 5 * sqrt(share / NUM_GAMES) for n in first.values())


def test_the_generator_alone_decides_the_game():
    """Oracle: two generators of one seed; another seed."""
    mix = GuessMix()
    assert games(mix, 7) == games(mix, 7) != games(mix, 8)
