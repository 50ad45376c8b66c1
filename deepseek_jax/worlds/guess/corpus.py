"""A toy world of games: guess a number from "higher" and "lower".

The corpus plays carelessly: about half of the guesses are any number, the others are any number
that the answers so far allow. So a model pre-trained here reads the answers and needs about 6 turns
to guess the number, where halving the remaining numbers takes 3.4. Reinforcement learning can then
make it play better.
"""

from dataclasses import dataclass

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.worlds.guess.environment import MOST_TURNS, GuessNumber
from deepseek_jax.worlds.mix import Mix

LARGEST = 16
NUMBERS = range(1, LARGEST + 1)
QUESTION = f"Guess a number from 1 to {LARGEST}."
# Every text of this world is a sequence of these pieces
PIECES = (*map(str, NUMBERS), QUESTION, "\n", "higher", "lower")
# Stands for any other text, such as the answer to a text that is not a guess
OTHER = "…"


@dataclass(frozen=True)
class GuessMix(Mix):
    """How the corpus plays.

    Attributes:
        careless: Share of guesses that are any number, whatever the answers were.
    """

    careless: float = 0.50


def write_document(rng, mix=GuessMix()):
    r"""Write one game, a list of texts, without the end tokens after each of them.

    It is "Guess a number from 1 to 16.\n7", "higher\n14", "lower\n11". It ends with the number, or
    after MOST_TURNS.

    Args:
        rng: np.Generator, the only randomness.
    """
    game = GuessNumber()
    observation: str | None = QUESTION
    turns: list[str] = []
    low, high = NUMBERS[0], NUMBERS[-1]
    game.reset(number=_draw(rng, low, high))
    while observation is not None and len(turns) < MOST_TURNS:
        is_careless = rng.random() < mix.careless
        guess = _draw(rng, NUMBERS[0], NUMBERS[-1]) if is_careless else _draw(rng, low, high)
        turns.append(PLAIN_TEMPLATE.format(question=observation) + str(guess))
        observation = game.step(str(guess))
        if observation == "higher":
            low = max(low, guess + 1)
        else:
            high = min(high, guess - 1)
    return turns


def _draw(rng, low, high):
    """Draw a number of low..high."""
    return int(rng.integers(low, high + 1))
