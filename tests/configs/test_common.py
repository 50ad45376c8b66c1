"""Functions that experiment files share, against arguments and numbers written by hand."""

import itertools
import math
from fractions import Fraction

import pytest

from configs.common import batch_ramp, parse_arg, updates_until


def test_no_argument_keeps_the_defaults():
    """Oracle: by hand."""
    for arg in (None, ""):
        assert parse_arg(arg, runlocal=False, seed=0).to_dict() == {"runlocal": False, "seed": 0}


def test_values_take_the_types_of_their_defaults():
    """Oracle: by hand; types compared too, since True == 1 == 1.0."""
    parsed = parse_arg("runlocal,seed=3,lr=1,name=a=b", runlocal=False, seed=0, lr=0.1, name="")
    expected = {"runlocal": True, "seed": 3, "lr": 1.0, "name": "a=b"}
    assert parsed.to_dict() == expected
    assert all(type(parsed[key]) is type(value) for key, value in expected.items())


def test_a_bool_can_be_switched_off():
    """Oracle: by hand."""
    assert parse_arg("remat=false", remat=True).remat is False


@pytest.mark.parametrize(
    "arg, words",
    [
        ("runlocl", "did you mean runlocal? allowed: runlocal, seed"),
        ("seed=abc", "seed needs an int, given 'abc'"),
        ("seed=1.5", "seed needs an int, given '1.5'"),
        ("seed", "seed needs an int, given no value"),
        ("runlocal=1", "write --config=FILE:runlocal=true or false"),
        ("seed=1,seed=2", "'seed' is given twice"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arg, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        parse_arg(arg, runlocal=False, seed=0)
    assert words in str(error.value) and repr(arg) in str(error.value)


TRILLION = 10**12
V3 = dict(start=3072, end=15360, ramp_tokens=469 * 10**9, sequence_length=4096)


def sizes(stages, updates):
    """The sequences of each update, one by one."""
    return [[n for first, n in stages if first <= i][-1] for i in range(updates)]


def test_a_batch_grows_by_quanta_over_its_tokens():
    """Oracle: by hand: 20 tokens a size, 4 an update at first: 5 updates; 8: 3, to 44 tokens; then 12."""
    ramp = batch_ramp(2, 6, quantum=2, ramp_tokens=40, sequence_length=2)
    assert ramp == ((0, 2), (5, 4), (8, 6))
    seen = {0: 0, 1: 1, 20: 5, 21: 6, 44: 8, 45: 9, 56: 9, 57: 10}
    assert {n: updates_until(n, ramp, sequence_length=2) for n in seen} == seen


def test_a_share_shorter_than_an_update_is_passed_over():
    """Oracle: by hand: shares of 10 tokens. Update 0 takes 24, past two of them: the third size, 3, is next,
    and its 72 tokens end the ramp.
    """
    ramp = batch_ramp(1, 4, quantum=1, ramp_tokens=30, sequence_length=24)
    assert ramp == ((0, 1), (1, 3), (2, 4))


@pytest.mark.parametrize("quantum", [128, 1024, 3072])
def test_a_ramp_follows_the_tokens_seen_update_by_update(quantum):
    """Oracle: a loop over updates that asks each time, in fractions, which share the tokens seen are in."""
    total, sequence_length = 469 * 10**6, 4096
    ramp = batch_ramp(
        3072, 15360, quantum=quantum, ramp_tokens=total, sequence_length=sequence_length
    )
    rises, tokens, wanted = (15360 - 3072) // quantum, 0, []
    while tokens < 3 * total:
        share = min(math.floor(Fraction(tokens * rises, total)), rises)
        wanted.append(3072 + quantum * share)
        tokens += wanted[-1] * sequence_length
        assert updates_until(tokens, ramp, sequence_length=sequence_length) == len(wanted)
        assert updates_until(tokens + 1, ramp, sequence_length=sequence_length) == len(wanted) + 1
    assert sizes(ramp, len(wanted)) == wanted


@pytest.mark.parametrize("quantum", [128, 1024, 3072])
def test_the_published_run_sees_its_tokens_to_within_a_batch(quantum):
    """Oracle: arXiv:2412.19437, section 4.2: 14.8T tokens, summed update by update."""
    ramp = batch_ramp(**V3, quantum=quantum)
    ends = [first for first, _ in ramp[1:]]
    updates = updates_until(148 * TRILLION // 10, ramp, sequence_length=4096)
    counts = [b - a for a, b in itertools.pairwise([0, *ends, updates])]
    seen = sum(count * n * 4096 for count, (_, n) in zip(counts, ramp, strict=True))
    assert 0 <= seen - 14.8 * TRILLION < 15360 * 4096
    assert ramp[-1][1] == 15360 and all(n % quantum == 0 for _, n in ramp)
    grown = sum(count * n * 4096 for count, (_, n) in zip(counts[:-1], ramp, strict=False))
    assert 0 <= grown - 469 * 10**9 < 15360 * 4096


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(start=3000), "start=3000 and end=15360 must be multiples of quantum=1024"),
        (dict(end=15000), "end=15000 must be multiples of quantum=1024"),
        (
            dict(end=3072),
            "start=3072 and end=3072 must be multiples of quantum=1024, start below end",
        ),
        (dict(ramp_tokens=0), "ramp_tokens=0 must be at least 1"),
        (dict(start=0), "start=0 must be at least 1"),
        (dict(quantum=0), "quantum=0 must be at least 1"),
        (dict(sequence_length=0), "sequence_length=0 must be at least 1"),
    ],
)
def test_a_ramp_that_does_not_rise_is_refused(change, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        batch_ramp(**(V3 | dict(quantum=1024) | change))
    assert words in str(error.value)
