"""A toy world of sums that are too long for the head, and a corpus that seldom calls a tool.

A question is "3120 + 4805?". The corpus mostly answers it at once and wrongly. Seldom it writes the
call "add(3120, 4805)", reads the sum that the calculator gives, and repeats it. Other documents are
a number that is read and repeated. So a model pre-trained here can call and copy, and rarely does.
Reinforcement learning can then make it do so more often.
"""

from dataclasses import dataclass

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.worlds.arithmetic.corpus import DIGITS, held_out
from deepseek_jax.worlds.mix import Mix

SMALLEST_OPERAND = 1000
LARGEST_OPERAND = 9999
# A wrong number differs by at most this
LARGEST_SLIP = 999
# Every text of this world is a sequence of these pieces
PIECES = (*DIGITS, " + ", "?", "\n", "add(", ", ", ")")
# Stands for any other text, such as an error message
OTHER = "…"


@dataclass(frozen=True)
class CalculatorMix(Mix):
    r"""The contents of the corpus, as shares in 0..1.

    Attributes:
        copied: Share of all documents: a number as the question and the same number as the answer,
            "7925\n7925". The other documents ask for a sum.
        called: Share of sums in which the first turn calls the calculator.
        wrong_direct: Share of answers without a call that are wrong.
        wrong_reading: Share of answers after a call, and of copied numbers, that differ from the
            number before them.
    """

    copied: float = 0.50
    called: float = 0.10
    wrong_direct: float = 0.90
    wrong_reading: float = 0.05


def question(operands):
    """Write the text "3120 + 4805?" for operands (3120, 4805)."""
    return f"{' + '.join(map(str, operands))}?"


def call(operands):
    """Write the call "add(3120, 4805)" in the plain form."""
    return f"add({', '.join(map(str, operands))})"


def draw_operands(rng):
    """Draw two operands, uniformly, as a list.

    Args:
        rng: np.Generator.
    """
    return rng.integers(SMALLEST_OPERAND, LARGEST_OPERAND + 1, size=2).tolist()


def write_document(rng, mix=CalculatorMix()):
    """Write one document of the corpus, as a list of texts without end tokens.

    A text is a question, in the template, and the answer of the turn.

    Args:
        rng: np.Generator, the only randomness.
    """
    if rng.random() < mix.copied:
        number = sum(draw_operands(rng))
        return [_turn(number, _perhaps_wrong(rng, number, mix.wrong_reading))]
    operands = draw_operands(rng)
    while held_out(operands):
        operands = draw_operands(rng)
    total = sum(operands)
    if rng.random() < mix.called:
        read_number = _perhaps_wrong(rng, total, mix.wrong_reading)
        return [_turn(question(operands), call(operands)), _turn(total, read_number)]
    return [_turn(question(operands), _perhaps_wrong(rng, total, mix.wrong_direct))]


def _turn(question_text, answer):
    return PLAIN_TEMPLATE.format(question=question_text) + str(answer)


def _perhaps_wrong(rng, number, share):
    """Return the number, or in this share of cases one that differs by at most LARGEST_SLIP."""
    if rng.random() >= share:
        return number
    return number + int(rng.integers(1, LARGEST_SLIP + 1)) * (1 if rng.random() < 0.5 else -1)
