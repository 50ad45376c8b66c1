"""The game, played by hand and by halving."""

import inspect

import pytest

from deepseek_jax.worlds.guess.corpus import NUMBERS
from deepseek_jax.worlds.guess.environment import MOST_TURNS, GuessNumber


def begun(number):
    game = GuessNumber()
    assert game.reset(question="?", number=number, answer=str(number)) is None
    return game


def test_a_guess_is_answered_by_where_the_number_is():
    """Oracle: by hand: 1, 15/16 and 14/16 for one, two and three turns."""
    game = begun(20)
    assert (game.step("9"), game.step(" 24\n"), game.step("20")) == ("higher", "lower", None)
    assert game.get_reward() == 14 / 16
    assert begun(20).get_reward() == 0.0
    first = begun(20)
    assert first.step("20") is None and first.get_reward() == 1.0


@pytest.mark.parametrize("text", ["", "higher", "2 0", "-20", "20.0", "²", "…"])
def test_a_text_that_is_no_number_costs_a_turn(text):
    """Oracle: by hand."""
    game = begun(20)
    assert game.step(text) == "guess a whole number"
    assert game.step("20") is None and game.get_reward() == 15 / 16


def test_a_number_found_too_late_earns_nothing_and_never_less():
    """Oracle: by hand: 1/16 at the last turn that earns, 0 after it."""
    for turns, reward in ((MOST_TURNS, 1 / 16), (MOST_TURNS + 1, 0), (MOST_TURNS + 9, 0)):
        game = begun(2)
        for _ in range(turns - 1):
            game.step("1")
        game.step("2")
        assert game.get_reward() == reward


def test_halving_finds_every_number_in_a_few_turns():
    """Oracle: binary search: at most 5 turns for 16 numbers, 1 + 2*2 + 4*3 + 8*4 + 5 = 54 for all of
    them.
    """
    turns = []
    for number in NUMBERS:
        game, low, high, answer = begun(number), NUMBERS[0], NUMBERS[-1], ""
        while answer is not None:
            middle = (low + high) // 2
            answer = game.step(str(middle))
            low, high = (middle + 1, high) if answer == "higher" else (low, middle - 1)
        assert game.is_guessed
        turns.append(game.turns)
    assert max(turns) == 5 and sum(turns) == 54


def test_the_environment_has_one_action():
    """Oracle: its public methods, by hand: a text of the model is then a call of step."""
    methods = [name for name, _ in inspect.getmembers(GuessNumber, inspect.isfunction)]
    assert [name for name in methods if name[0] != "_"] == ["get_reward", "reset", "step"]
