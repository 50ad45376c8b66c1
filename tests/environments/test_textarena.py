"""A game that nobody here wrote: textarena's GuessTheNumber-v0, which pip installs and a file wraps."""

import subprocess
import sys

import pytest

from deepseek_jax.environments import Environments
from tests.environments.calls import FILES, act, scored

pytestmark = pytest.mark.slow
NAME = f"{FILES}/textarena_guess.py:GuessTheNumber"


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Environments that find textarena in a folder of its own, behind all other packages."""
    folder = tmp_path_factory.mktemp("textarena")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*pip, "textarena==0.7.4"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        # A worker has the paths of the process that starts it
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        with Environments([], NAME, workers=2) as made:
            yield made


def bisected(games, key):
    """(guesses, reward) of one game, which halves 1 to 20."""
    low, high, guesses = 1, 20, []
    while True:
        guesses.append((low + high) // 2)
        acted = act(games, key, f"I say [{guesses[-1]}].")
        assert acted.failure is None and acted.errors == 0
        if acted.ended:
            return guesses, scored(games, key)
        assert ("higher" in acted.texts[0]) != ("lower" in acted.texts[0])
        if "higher" in acted.texts[0]:
            low = guesses[-1] + 1
        else:
            high = guesses[-1] - 1


def test_a_game_is_played_to_its_end(games):
    """Oracle: bisection needs 5 guesses of 20 numbers, and the game's reward is then 1; the same seeds give
    the same numbers, and not one number for all.
    """
    assert games.takes_steps and games.reward_name == "GuessTheNumber"
    numbers = []
    for _ in range(2):
        begun = games.begin({key: ({"question": "Play."}, key) for key in range(8)})
        assert all("between 1 and 20 within 10 turns" in text for text in begun.values())
        played = [bisected(games, key) for key in range(8)]
        assert all(len(guesses) <= 5 and reward == 1 for guesses, reward in played)
        numbers.append([guesses[-1] for guesses, _ in played])
    assert numbers[0] == numbers[1] and len(set(numbers[0])) > 2


def test_a_game_that_is_not_ended_has_the_reward_of_none(games):
    """Oracle: the wrapper's 0; a text without a guess is answered by the game, and a second ends it."""
    games.begin({0: ({}, 0), 1: ({}, 1)})
    assert "Invalid move format" in act(games, 1, "hello").texts[0]
    assert act(games, 1, "hello").ended
    assert [scored(games, 0), scored(games, 1)] == [0.0, 0.0]
