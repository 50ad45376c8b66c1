"""The World of sums, and the World of sums and differences in words.

Tests: tests/worlds/test_registry.py.
"""

from functools import partial

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.worlds.arithmetic.corpus import CorpusMix, NumberedMix, write_document
from deepseek_jax.worlds.arithmetic.tasks import (
    arithmetic_task,
    word_arithmetic_task,
    worked_example,
)
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.world import Questions, World
from deepseek_jax.worlds.written import written_corpus

SUMS = World(
    name="arithmetic",
    template=PLAIN_TEMPLATE,
    questions={"arithmetic": Questions(arithmetic_task, "correct", worked_example)},
    reasoning="arithmetic",
    corpora={
        "arithmetic": partial(written_corpus, write_document, CorpusMix()),
        "arithmetic_numbered": partial(written_corpus, write_document, NumberedMix()),
    },
    tokenizers={"arithmetic": arithmetic_tokenizer},
)
# For a checkpoint that knows English: free text and no corpus
WORDS = World(
    name="word_arithmetic",
    template="chat",
    questions={"word_arithmetic": Questions(word_arithmetic_task, "correct", worked_example)},
    reasoning="word_arithmetic",
)
