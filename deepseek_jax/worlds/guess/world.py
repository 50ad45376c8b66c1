"""The World of guesses, as the registry lists it.

Tests: tests/worlds/test_registry.py.
"""

from functools import partial

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.rewards.rule import Rule
from deepseek_jax.worlds.guess.corpus import GuessMix, write_document
from deepseek_jax.worlds.guess.tasks import guess_task, guessed, number_of
from deepseek_jax.worlds.guess.tokenizer import guess_tokenizer
from deepseek_jax.worlds.world import Questions, World
from deepseek_jax.worlds.written import written_corpus

GUESS = World(
    name="guess",
    template=PLAIN_TEMPLATE,
    questions={"guess": Questions(guess_task, "guessed", number_of, alike=True)},
    reasoning="guess",
    corpora={"guess": partial(written_corpus, write_document, GuessMix())},
    tokenizers={"guess": guess_tokenizer},
    rewards={"guessed": Rule(guessed)},
)
