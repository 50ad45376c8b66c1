"""A check that no term is idle."""

import jax.numpy as jnp
import pytest

from deepseek_jax.distill.terms import OF_DATA, OF_TEACHER, TERMS, check_terms

GOOD = dict(soft=0.5, hard=0.3, hidden=2.0)


@pytest.mark.parametrize(
    "values, norms, complaint",
    [
        (dict(hidden=0.0), {}, r"^weights.hidden=0.1, and the term's value is 0"),
        ({}, dict(hard=0.0), r"^weights.hard=0.25, and the term's gradient norm is 0"),
        (dict(soft=float("nan")), {}, r"^weights.soft=0.75, .* value is nan"),
        ({}, dict(soft=float("inf")), r"^weights.soft=0.75, .* gradient norm is inf"),
        (dict(soft=0.0), dict(hard=0.0), r"^weights.soft=.*; weights.hard="),
    ],
)
def test_an_idle_term_is_named(values, norms, complaint):
    """Oracle: the weight and what was measured, by hand."""
    weights = dict(soft=0.75, hard=jnp.float32(0.25), hidden=0.1)
    check_terms(weights, GOOD, GOOD)
    with pytest.raises(ValueError, match=complaint):
        check_terms(weights, GOOD | values, GOOD | norms)


def test_groups_of_terms_are_terms():
    """Oracle: by hand: all but l2 and on_policy need data; all but hard and l2 a teacher."""
    assert set(OF_DATA) == set(TERMS) - {"l2", "on_policy"}
    assert set(OF_TEACHER) == set(TERMS) - {"hard", "l2"}
