"""What a run checks of its own numbers."""

import jax.numpy as jnp
import pytest

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.training.watch import check_terms

GOOD = {"weights.soft": 0.5, "weights.hard": 0.3, "weights.hidden": 2.0}


@pytest.mark.parametrize(
    "values, norms, complaint",
    [
        ({"weights.hidden": 0.0}, {}, r"^weights.hidden=0.1, and the term's value is 0"),
        ({}, {"weights.hard": 0.0}, r"^weights.hard=0.25, and the term's gradient norm is 0"),
        ({"weights.soft": float("nan")}, {}, r"^weights.soft=0.75, .* value is nan"),
        ({}, {"weights.soft": float("inf")}, r"^weights.soft=0.75, .* gradient norm is inf"),
        ({"weights.soft": 0.0}, {"weights.hard": 0.0}, r"^weights.soft=.*; weights.hard="),
    ],
)
def test_an_idle_term_is_named(values, norms, complaint):
    """Oracle: the weight and what was measured, by hand."""
    weights = {"weights.soft": 0.75, "weights.hard": jnp.float32(0.25), "weights.hidden": 0.1}
    check_terms(weights, GOOD, GOOD)
    with pytest.raises(BrokenTerm, match=complaint):
        check_terms(weights, GOOD | values, GOOD | norms)
