"""THE list of toy worlds, and the look-ups by name that the recipes use."""

from collections.abc import Callable, Mapping
from typing import Any

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.read_tokenizer import deepseek_tokenizer, load_tokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import suggest
from deepseek_jax.named_code import BRING, is_code
from deepseek_jax.rewards.rule import Rule
from deepseek_jax.rewards.rules import RULES
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.worlds.arithmetic.world import SUMS, WORDS
from deepseek_jax.worlds.bilingual.world import BILINGUAL
from deepseek_jax.worlds.calculator.world import CALCULATOR
from deepseek_jax.worlds.guess.world import GUESS
from deepseek_jax.worlds.own import own_questions
from deepseek_jax.worlds.world import Questions, World

# Names in a config
WORLDS = {
    "arithmetic": SUMS,
    "word_arithmetic": WORDS,
    "bilingual": BILINGUAL,
    "calculator": CALCULATOR,
    "guess": GUESS,
}
# These tokenizers belong to no world
TOKENIZERS = {"bytes": byte_tokenizer, "deepseek": deepseek_tokenizer}


def find_world(name: str) -> World:
    """Find the World of this name, or raise ValueError."""
    if name not in WORLDS:
        raise ValueError(f"world={name!r} is not a world; {suggest(name, WORLDS)}")
    return WORLDS[name]


def find_questions(name: str) -> tuple[World | None, Questions]:
    """Find the questions of this name, and their World.

    Returns:
        (World, Questions); (None, Questions) for FILE.py:NAME or package.module:NAME.

    Raises:
        ValueError: If no world has such questions, and as in own_questions.
    """
    for world in WORLDS.values():
        if name in world.questions:
            return world, world.questions[name]
    if is_code(name):
        return None, own_questions(name)
    raise ValueError(
        f"task={name!r} is not a world's task; {suggest(name, question_names())}; {BRING}"
    )


def question_names() -> list[str]:
    """List the names of all worlds' questions."""
    return [name for world in WORLDS.values() for name in world.questions]


def find_corpus(name: str) -> tuple[World, Callable]:
    """Find the corpus of this name: (World, documents), or raise ValueError."""
    for world in WORLDS.values():
        if name in world.corpora:
            return world, world.corpora[name]
    raise ValueError(f"corpus={name!r} is not a world's corpus; {suggest(name, corpus_names())}")


def corpus_names() -> list[str]:
    """List the names of all worlds' corpora."""
    return [name for world in WORLDS.values() for name in world.corpora]


def named_tokenizer(name: str) -> Tokenizer:
    """Make or load the tokenizer of this name.

    Args:
        name: A world's tokenizer or corpus, one of TOKENIZERS, or a checkpoint as in
            load_tokenizer.
    """
    for world in WORLDS.values():
        if name in world.tokenizers:
            return world.tokenizers[name]()
        if name in world.corpora:
            tokenizer = world.tokenizer()
            # A world that writes a corpus has its own words
            assert tokenizer is not None
            return tokenizer
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    return load_tokenizer(name)


def all_rules() -> dict[str, Rule]:
    """Return the rules that weights of rewards may name: the general ones and every world's."""
    rules = dict(RULES)
    for world in WORLDS.values():
        rules |= world.rewards
    return rules


def open_rewards(weights: Mapping[str, float], models: Mapping[str, Any] | None = None) -> Rewards:
    """Build Rewards with the rules of all worlds, and with trained models."""
    return Rewards(weights, models, all_rules())
