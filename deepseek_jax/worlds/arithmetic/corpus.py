"""A toy world of sums: its questions, its answers, and a corpus as unreliable as web text.

A question is "What is 3 + 8 + 5?" with three or four operands of 1..9. The corpus answers it often
without working and often wrongly, seldom step by step. Tables of true facts, such as "11 + 7 = 18",
teach the single step. So a model pre-trained here can work out an answer, but rarely does.
Reinforcement learning can then make it do so more often.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from deepseek_jax.data.chat import PLAIN_TEMPLATE
from deepseek_jax.worlds.mix import Mix

OPERAND_COUNTS = (3, 4)
LARGEST_OPERAND = 9
# The largest left side of a last step
LARGEST_RUNNING_SUM = LARGEST_OPERAND * (max(OPERAND_COUNTS) - 1)
HELD_OUT_PERCENT = 20

FACTS_PER_TABLE = 6
# Fewest and most pieces of junk
JUNK_LENGTHS = (3, 20)
# Numbers before a question, in NumberedMix. They are few, so that a small model learns to read them
NUMBERS = (25, 50, 75, 100)
# A wrong number differs by 1..5
LARGEST_SLIP = 5

DIGITS = tuple("0123456789")
SYMBOLS = (" + ", " = ", "; ", ", ")
WORDS = ("What is ", "?\n", "we add ", "then ", "the answer is ")
# Every text of this world is a sequence of these pieces
PIECES = (*DIGITS, *SYMBOLS, *WORDS)


@dataclass(frozen=True)
class CorpusMix(Mix):
    """The contents of the corpus, as shares in 0..1; the five completions' shares add up to 1.

    A document is a table of facts, or a question and one of the completions:

    - direct: "16".
    - running: "11, 16".
    - equations: "3 + 8 = 11; 11 + 5 = 16".
    - verbose: "we add 3 + 8 = 11; then we add 11 + 5 = 16; the answer is 16".
    - junk: random digits and symbols.

    Attributes:
        fact_tables: Share of all documents.
        wrong_direct: Share of direct answers that are wrong.
        wrong_working: Share of running, equations and verbose completions with one wrong step,
            which all later steps carry on.
        numbered: Share of questions with a number before them, see NumberedMix.

    Raises:
        ValueError: If a share is not in 0..1, or the completions' shares do not add up to 1.
    """

    fact_tables: float = 0.40
    direct: float = 0.40
    running: float = 0.10
    equations: float = 0.25
    verbose: float = 0.10
    junk: float = 0.15
    wrong_direct: float = 0.40
    wrong_working: float = 0.10
    # Without a type, so not a field: datasets on disk are named by the fields
    numbered = 0.0

    def __post_init__(self):
        super().__post_init__()
        if abs(sum(self.styles.values()) - 1) > 1e-6:
            raise ValueError(
                f"the completions' shares {self.styles} add up to {sum(self.styles.values())}; "
                f"change {', '.join(self.styles)} until they add up to 1."
            )

    @property
    def styles(self):
        """The five completions and their shares among the questions."""
        names = ("direct", "running", "equations", "verbose", "junk")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class NumberedMix(CorpusMix):
    """The contents of a corpus in which a number before a question hints at its answer's length.

    Reinforcement may turn the hint into a rule, such as a reasoning effort. Direct answers are
    seldom wrong here, so that a short answer is worth something.

    Attributes:
        numbered: Share of questions with a number, one of NUMBERS: "75; What is 3 + 8 + 5?".
        following: How far the styles follow the number. At 50 the styles are as without a number.
            At 100 this share of the direct answers are equations instead, and at 75 half as many.
            At 25 as many equations are direct answers instead.
    """

    numbered: float = 0.50
    following: float = 0.80
    wrong_direct: float = 0.10

    def with_number(self, number: int):
        """Return the mix of the questions with this number."""
        moved = self.direct * self.following * (number / 50 - 1)
        return replace(self, direct=self.direct - moved, equations=self.equations + moved)


def held_out(operands: Iterable[int]) -> bool:
    """Return whether this ordered tuple of operands is held out for evaluation.

    It is true for 20% of them, the same on every machine. A held-out tuple is in no question of the
    corpus and in no training question. Its single steps are in the fact tables: only their
    combination is held out.
    """
    # Not hash(), which differs between processes for a str
    digest = blake2b(" ".join(str(int(x)) for x in operands).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def question(operands: Iterable[int]) -> str:
    """Write "What is 3 + 8 + 5?" for the operands (3, 8, 5)."""
    return f"What is {' + '.join(map(str, operands))}?"


def direct(operands: Iterable[int]) -> str:
    """Write the answer and nothing else: "16"."""
    return str(sum(operands))


def worked(operands, sums=None):
    """Write one step of two operands per sum: "3 + 8 = 11; 11 + 5 = 16".

    Args:
        sums: The running sums to state, by default the true ones. The step after a false sum
            continues with it.
    """
    sums = running_sums(operands) if sums is None else sums
    lefts = (operands[0], *sums[:-1])
    return "; ".join(f"{a} + {b} = {c}" for a, b, c in zip(lefts, operands[1:], sums, strict=True))


def running_sums(operands, *, slip: int = 0, slip_step: int = 0):
    """Return the sum after each step, [11, 16] for 3 + 8 + 5.

    The sums from step `slip_step` on are off by slip.
    """
    sums = np.cumsum(operands)[1:].tolist()
    return [total + slip * (step >= slip_step) for step, total in enumerate(sums)]


def draw_operands(rng: np.random.Generator) -> list[int]:
    """Draw three or four operands, equally often, until they are not held out."""
    while True:
        count = OPERAND_COUNTS[rng.integers(len(OPERAND_COUNTS))]
        operands = rng.integers(1, LARGEST_OPERAND + 1, size=count).tolist()
        if not held_out(operands):
            return operands


def write_document(rng, mix=CorpusMix()):
    """Write one document of the corpus, without its end token.

    Args:
        rng: np.Generator, the only randomness.
    """
    if rng.random() < mix.fact_tables:
        return _fact_table(rng)
    operands = draw_operands(rng)
    prompt = PLAIN_TEMPLATE.format(question=question(operands))
    # A mix without numbers makes no draw here, so its documents stay the same
    if mix.numbered and rng.random() < mix.numbered:
        number = NUMBERS[rng.integers(len(NUMBERS))]
        mix, prompt = mix.with_number(number), f"{number}; {prompt}"
    return prompt + _complete(rng, mix, operands, _draw_style(rng, mix))


def _fact_table(rng):
    lefts = rng.integers(1, LARGEST_RUNNING_SUM + 1, size=FACTS_PER_TABLE).tolist()
    rights = rng.integers(1, LARGEST_OPERAND + 1, size=FACTS_PER_TABLE).tolist()
    return "; ".join(f"{a} + {b} = {a + b}" for a, b in zip(lefts, rights, strict=True))


def _draw_style(rng, mix):
    names, shares = list(mix.styles), list(mix.styles.values())
    # Dividing by the sum makes the last end exactly 1, above every draw
    ends = np.cumsum(shares) / sum(shares)
    return names[np.searchsorted(ends, rng.random(), side="right")]


def _complete(rng, mix, operands, style):
    if style == "junk":
        alphabet = DIGITS + SYMBOLS
        length = rng.integers(JUNK_LENGTHS[0], JUNK_LENGTHS[1] + 1)
        return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
    if style == "direct":
        wrong = rng.random() < mix.wrong_direct
        return str(sum(operands) + (_draw_slip(rng, sum(operands)) if wrong else 0))
    sums = running_sums(operands)
    if rng.random() < mix.wrong_working:
        step = int(rng.integers(len(sums)))
        sums = running_sums(operands, slip=_draw_slip(rng, sums[step]), slip_step=step)
    if style == "running":
        return ", ".join(map(str, sums))
    if style == "equations":
        return worked(operands, sums)
    steps = worked(operands, sums).replace("; ", "; then we add ")
    return f"we add {steps}; the answer is {sums[-1]}"


def _draw_slip(rng, total):
    """Draw a nonzero error that leaves `total` positive."""
    slips = [s for s in range(-LARGEST_SLIP, LARGEST_SLIP + 1) if s != 0 and total + s > 0]
    return slips[rng.integers(len(slips))]
