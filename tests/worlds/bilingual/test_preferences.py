"""Pairs and safety labels of the bilingual world."""

from collections import Counter

import numpy as np
import pytest

from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.worlds.bilingual import general as bilingual_general
from deepseek_jax.worlds.bilingual.mistakes import near_miss
from deepseek_jax.worlds.bilingual.preferences import PreferenceWriter
from deepseek_jax.worlds.bilingual.request_rewards import harmless, helpfulness
from deepseek_jax.worlds.bilingual.tasks import request_examples
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer


@pytest.fixture(scope="module")
def requests():
    return {r["question"]: r for r in request_examples(0, 400)}


@pytest.fixture(scope="module")
def writer(requests):
    return PreferenceWriter(list(requests.values()))


@pytest.fixture(scope="module")
def pairs(writer):
    return writer.pairs(0, 1200)


@pytest.fixture(scope="module")
def labelled(writer):
    return writer.safety(0, 1200)


def test_the_chosen_answer_is_the_more_helpful_one(pairs, requests):
    """Oracle: the rule, on the two texts."""
    for pair in pairs:
        request = requests[pair["question"]]
        grades = [helpfulness(pair[name], request) for name in ("chosen", "rejected")]
        assert grades == [pair["chosen_helpfulness"], pair["rejected_helpfulness"]]
        assert grades[0] > grades[1]


def test_a_near_miss_is_the_answer_but_for_one_word(requests):
    """Oracle: the pieces of both, side by side; and the rule, for which it is no best answer."""
    rng, encode = np.random.default_rng(0), bilingual_tokenizer().encode
    for request in requests.values():
        missed = near_miss(rng, request["answer"])
        pairs = zip(encode(request["answer"]), encode(missed), strict=True)
        assert sum(a != b for a, b in pairs) == 1
        assert helpfulness(missed, request) < 1


def test_every_kind_grade_and_language_occurs(pairs):
    """Oracle: counts; kinds are drawn alike, and pairs of equal grade alone are left out."""
    assert set(Counter(p["kind"] for p in pairs)) == set(bilingual_general.KINDS)
    assert min(Counter(p["kind"] for p in pairs).values()) > 100
    assert min(Counter(p["language"] for p in pairs).values()) > 400
    grades = Counter((p["chosen_helpfulness"], p["rejected_helpfulness"]) for p in pairs)
    assert len(grades) == 6  # of four grades, every two


def test_length_does_not_tell_the_chosen_answer(pairs):
    """Oracle: mean lengths in tokens of chosen and rejected answers; and how often the longer one is
    chosen. Unbalanced, the mean gap is over a token, for junk is long."""
    tokenizer = bilingual_tokenizer()
    gaps = [
        len(tokenizer.encode(p["chosen"])) - len(tokenizer.encode(p["rejected"])) for p in pairs
    ]
    assert abs(sum(gaps)) / len(gaps) < 0.02
    longer, shorter = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    assert 0.3 < longer / (longer + shorter) < 0.7


def test_safe_completions_tell_no_secret_and_unsafe_ones_do(labelled, requests):
    """Oracle: a search for the secret's two words; half of a half are unsafe, within 5 deviations."""
    for example in labelled:
        request = requests[example["question"]]
        told = any(word in example["completion"] for word in request["key"].split("|"))
        assert example["safe"] == harmless(example["completion"], request)
        assert example["safe"] == (not (told and example["kind"] == "secret"))
    unsafe = sum(1 - e["safe"] for e in labelled)
    assert abs(unsafe / len(labelled) - 0.25) < 5 * (0.25 * 0.75 / len(labelled)) ** 0.5


def test_a_secret_is_told_in_the_thought_as_well_as_in_the_answer(labelled):
    """Oracle: the tags."""
    unsafe = [e["completion"] for e in labelled if not e["safe"]]
    in_thought = sum("I must not" in x or "不能说" in x for x in unsafe)
    assert 50 < in_thought < len(unsafe) - 50


def test_what_is_labelled_looks_like_any_completion(labelled):
    """Oracle: the format and language rewards; only junk, which may be tags itself, breaks the first."""
    laid_out = [e for e in labelled if think_answer_format(e["completion"], e)]
    assert len(laid_out) > 0.9 * len(labelled)
    assert all(language_consistency(e["completion"], e) == 1.0 for e in laid_out)


def test_the_seed_alone_decides(writer):
    """Oracle: the same seed twice, and another one."""
    for write in (writer.pairs, writer.safety):
        assert write(1, 40) == write(1, 40) != write(2, 40)
