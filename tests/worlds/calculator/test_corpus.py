"""The texts of the world of long sums, and what its corpus is made of."""

import re
from math import sqrt

import numpy as np
import pytest

from deepseek_jax.worlds.arithmetic.corpus import held_out
from deepseek_jax.worlds.calculator import corpus
from deepseek_jax.worlds.calculator.corpus import CalculatorMix

NUM_DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [corpus.write_document(rng) for _ in range(NUM_DOCUMENTS)]


@pytest.fixture(scope="module")
def asked(documents):
    """(operands, number that the first turn answers or None, number that the second does or None)."""
    found = []
    for document in documents:
        match = re.fullmatch(r"(\d{4}) \+ (\d{4})\?\n(.*)", document[0])
        if match:
            operands, answer = [int(match[1]), int(match[2])], match[3]
            if len(document) == 1:
                found.append((operands, int(answer), None))
            else:
                assert answer == f"add({match[1]}, {match[2]})" and len(document) == 2
                total, read = document[1].split("\n")
                assert int(total) == sum(operands)
                found.append((operands, None, int(read)))
    return found


def assert_share(hits, total, share):
    """5 standard deviations of the binomial: one false alarm in a million draws."""
    assert abs(hits / total - share) < 5 * sqrt(share * (1 - share) / total)


def test_texts_of_a_question_and_its_call():
    """Oracle: by hand."""
    assert corpus.question((3120, 4805)) == "3120 + 4805?"
    assert corpus.call((3120, 4805)) == "add(3120, 4805)"


def test_no_document_asks_a_held_out_question(asked):
    """Oracle: a scan of every question in the corpus."""
    assert len(asked) > 1000
    assert not [operands for operands, _, _ in asked if held_out(operands)]


def test_shares_of_the_corpus_are_those_of_the_mix(documents, asked):
    """Oracle: the mix, within 5 standard deviations: copies, calls, and the wrong ones of each answer."""
    mix = CalculatorMix()
    copies = [d[0].split("\n") for d in documents if "?" not in d[0]]
    assert_share(len(copies), NUM_DOCUMENTS, mix.copied)
    assert len(copies) + len(asked) == NUM_DOCUMENTS
    assert_share(sum(a != b for a, b in copies), len(copies), mix.wrong_reading)
    direct = [answer != sum(operands) for operands, answer, _ in asked if answer is not None]
    called = [read != sum(operands) for operands, _, read in asked if read is not None]
    assert_share(len(called), len(asked), mix.called)
    assert_share(sum(direct), len(direct), mix.wrong_direct)
    assert_share(sum(called), len(called), mix.wrong_reading)


def test_wrong_numbers_are_near_the_right_ones(asked):
    """Oracle: the largest slip, and both signs."""
    slips = [answer - sum(operands) for operands, answer, _ in asked if answer is not None]
    assert max(slips) <= corpus.LARGEST_SLIP and min(slips) >= -corpus.LARGEST_SLIP
    assert max(slips) > 900 and min(slips) < -900


def test_the_generator_alone_decides_the_document():
    """Oracle: two generators of one seed; another seed."""
    first, again, other = (
        [corpus.write_document(rng) for _ in range(20)]
        for rng in map(np.random.default_rng, (7, 7, 8))
    )
    assert first == again != other
