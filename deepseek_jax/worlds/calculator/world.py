"""The World of long sums and a calculator, as the registry lists it.

Tests: tests/worlds/test_registry.py.
"""

from functools import partial

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.rewards.rule import Rule
from deepseek_jax.worlds.calculator.corpus import CalculatorMix, write_document
from deepseek_jax.worlds.calculator.tasks import answered, calculator_task, direct
from deepseek_jax.worlds.calculator.tokenizer import calculator_tokenizer
from deepseek_jax.worlds.world import Questions, World
from deepseek_jax.worlds.written import written_corpus

CALCULATOR = World(
    name="calculator",
    template=PLAIN_TEMPLATE,
    questions={"calculator": Questions(calculator_task, "answered", direct)},
    reasoning="calculator",
    corpora={"calculator": partial(written_corpus, write_document, CalculatorMix())},
    tokenizers={"calculator": calculator_tokenizer},
    rewards={"answered": Rule(answered)},
)
