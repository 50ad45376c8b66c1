"""The world of long sums and a calculator."""

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.rewards import Rule
from deepseek_jax.worlds.calculator.builder import calculator_corpus
from deepseek_jax.worlds.calculator.tasks import answered, calculator_task, direct
from deepseek_jax.worlds.calculator.tokenizer import calculator_tokenizer
from deepseek_jax.worlds.world import Questions, World

CALCULATOR = World(
    name="calculator",
    template=PLAIN_TEMPLATE,
    questions={"calculator": Questions(calculator_task, "answered", direct)},
    reasoning="calculator",
    corpora={"calculator": calculator_corpus},
    tokenizers={"calculator": calculator_tokenizer},
    rewards={"answered": Rule(answered)},
)
