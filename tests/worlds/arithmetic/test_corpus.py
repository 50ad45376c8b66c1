"""The small world's texts, and what its corpus is made of."""

import re
from collections import Counter
from itertools import product
from math import sqrt

import numpy as np
import pytest

from deepseek_jax.worlds.arithmetic import corpus as arithmetic
from deepseek_jax.worlds.arithmetic.corpus import CorpusMix, NumberedMix

NUM_DOCUMENTS = 20_000
STYLES = {  # numbers of this world have two digits at most, junk of digits alone has three
    "direct": r"\d{1,2}",
    "running": r"\d{1,2}(, \d{1,2}){1,2}",
    "equations": r"\d+ \+ \d = \d+(; \d+ \+ \d = \d+){1,2}",
    "verbose": r"we add [\d+= ]+(; then we add [\d+= ]+)+; the answer is \d+",
}


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [arithmetic.write_document(rng) for _ in range(NUM_DOCUMENTS)]


@pytest.fixture(scope="module")
def answered(documents):
    """(operands, completion, style) of every document that asks a question."""
    result = []
    for text in documents:
        if text.startswith("What is"):
            question, completion = text.split("?\n")
            operands = [int(x) for x in re.findall(r"\d+", question)]
            fits = [name for name, form in STYLES.items() if re.fullmatch(form, completion)]
            result.append((operands, completion, fits[0] if fits else "junk"))
    return result


def assert_share(hits, total, share):
    """5 standard deviations of the binomial: one false alarm in a million draws."""
    assert abs(hits / total - share) < 5 * sqrt(share * (1 - share) / total)


def test_texts_of_a_question_and_its_answers():
    """Oracle: by hand."""
    assert arithmetic.question((3, 8, 5, 9)) == "What is 3 + 8 + 5 + 9?"
    assert arithmetic.worked((3, 8, 5, 9)) == "3 + 8 = 11; 11 + 5 = 16; 16 + 9 = 25"
    assert arithmetic.worked((3, 8, 5), [12, 17]) == "3 + 8 = 12; 12 + 5 = 17"
    assert arithmetic.direct((3, 8, 5, 9)) == "25"
    assert arithmetic.running_sums((3, 8, 5, 9), slip=-2, slip_step=1) == [11, 14, 23]


def test_held_out_is_the_same_on_every_machine_for_a_fifth_of_all_tuples():
    """Oracle: the first tuples as once recorded; 20% within 5 standard deviations."""
    tuples = list(product(range(1, 10), repeat=3))
    kept = [x for x in tuples if arithmetic.held_out(x)]
    assert kept[:5] == [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 5), (1, 1, 8)]
    assert [x for x in tuples if arithmetic.held_out(np.array(x))] == kept
    assert_share(len(kept), len(tuples), 0.2)


def test_no_document_asks_a_held_out_question(answered):
    """Oracle: a scan of every question in the corpus."""
    assert len(answered) > 1000
    assert not [operands for operands, _, _ in answered if arithmetic.held_out(operands)]


def test_questions_have_three_or_four_operands_of_one_digit_equally_often(answered):
    """Oracle: half of the draws, within the binomial error once the held-out fifth is gone."""
    counts = Counter(len(operands) for operands, _, _ in answered)
    assert set(counts) == {3, 4}
    assert abs(counts[3] / len(answered) - 0.5) < 0.03  # 21.4% and 19.9% are held out: 0.495
    assert {x for operands, _, _ in answered for x in operands} == set(range(1, 10))


def test_shares_of_the_corpus_are_those_of_the_mix(documents, answered):
    """Oracle: the mix, within 5 standard deviations; the styles read by regular expressions."""
    mix = CorpusMix()
    assert_share(NUM_DOCUMENTS - len(answered), NUM_DOCUMENTS, mix.fact_tables)
    styles = Counter(style for _, _, style in answered)
    for style, share in mix.styles.items():
        assert_share(styles[style], len(answered), share)


def test_answers_are_wrong_as_often_as_the_mix_says(answered):
    """Oracle: the sum of the operands against the last number; 5 standard deviations."""
    wrong, total = Counter(), Counter()
    for operands, completion, style in answered:
        kind = "direct" if style == "direct" else "working" if style != "junk" else "junk"
        total[kind] += 1
        wrong[kind] += int((re.findall(r"\d+", completion) or ["0"])[-1]) != sum(operands)
    assert_share(wrong["direct"], total["direct"], CorpusMix().wrong_direct)
    assert_share(wrong["working"], total["working"], CorpusMix().wrong_working)


def test_wrong_working_has_one_false_step_and_carries_it_on(answered):
    """Oracle: each step evaluated, its left side compared with the step before."""
    num_wrong = 0
    for operands, completion, style in answered:
        if style == "equations":
            steps = [tuple(map(int, re.findall(r"\d+", step))) for step in completion.split(";")]
            assert [b for _, b, _ in steps] == operands[1:]
            assert [a for a, _, _ in steps] == [operands[0], *(c for _, _, c in steps[:-1])]
            false_steps = sum(a + b != c for a, b, c in steps)
            assert false_steps == (steps[-1][2] != sum(operands))
            num_wrong += false_steps
    assert num_wrong > 0


def test_fact_tables_are_true_and_hold_every_step_a_question_needs(documents):
    """Oracle: each fact evaluated; all 27 x 9 of them occur among 48,000."""
    tables = [text for text in documents if not text.startswith("What is")]
    facts = [tuple(map(int, re.findall(r"\d+", fact))) for t in tables for fact in t.split("; ")]
    assert len(facts) == 6 * len(tables)
    assert all(a + b == c for a, b, c in facts)
    assert {(a, b) for a, b, _ in facts} == set(product(range(1, 28), range(1, 10)))


def test_the_generator_alone_decides_the_document():
    """Oracle: two generators of one seed; another seed."""
    first, again, other = (
        [arithmetic.write_document(rng) for _ in range(20)]
        for rng in map(np.random.default_rng, (7, 7, 8))
    )
    assert first == again != other


def test_a_mix_of_one_style_writes_nothing_else():
    """Oracle: by hand; wrong_working=1 makes every answer wrong."""
    mix = CorpusMix(
        fact_tables=0, direct=0, running=1, equations=0, verbose=0, junk=0, wrong_working=1
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        question, completion = arithmetic.write_document(rng, mix).split("?\n")
        assert re.fullmatch(STYLES["running"], completion)
        answer = sum(int(x) for x in re.findall(r"\d+", question))
        assert completion.split(", ")[-1] != str(answer)


def test_half_of_a_numbered_mixs_questions_stand_after_a_number_that_hints_at_the_answers_length():
    """Oracle: the mix within 5 standard deviations: half of the questions, the numbers equally often; the
    shares of direct answers and of equations after each, by hand; without a number those of the mix, and
    without any numbers the documents of the other mix.
    """
    rng, shared = np.random.default_rng(0), np.random.default_rng(0)
    texts = [arithmetic.write_document(rng, NumberedMix(fact_tables=0.0)) for _ in range(10_000)]
    found = [re.fullmatch(r"(?:(\d+); )?What is .*\?\n(.*)", text) for text in texts]
    answers = {}
    for match in found:
        answers.setdefault(match[1], []).append(match[2])
    assert_share(len(answers[None]), len(texts), 0.5)
    expected = {None: 0.40, "25": 0.56, "50": 0.40, "75": 0.24, "100": 0.08}
    assert answers.keys() == expected.keys()
    for number, direct in expected.items():
        own = answers[number]
        if number:
            assert_share(len(own), len(texts), 0.125)
        assert_share(sum(bool(re.fullmatch(STYLES["direct"], a)) for a in own), len(own), direct)
        equations = sum(bool(re.fullmatch(STYLES["equations"], a)) for a in own)
        assert_share(equations, len(own), 0.65 - direct)
    mix = NumberedMix(numbered=0.0, wrong_direct=CorpusMix().wrong_direct)
    rng = np.random.default_rng(0)
    assert all(
        arithmetic.write_document(rng, mix) == arithmetic.write_document(shared) for _ in range(50)
    )


@pytest.mark.parametrize("wrong", [{"direct": 0.5}, {"fact_tables": 1.2}, {"wrong_direct": -0.1}])
def test_a_mix_that_is_no_mix_is_refused_by_name(wrong):
    """Oracle: the message names the field."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CorpusMix(**wrong)
