"""The table of dtypes of deepseek_jax/README.md, and what it is made of."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models import abstract_init
from deepseek_jax.ops.dot import dot
from launch.planning.topology import ENVIRONMENT
from tests.benchmarks import dtypes
from tests.benchmarks.traced import (
    array,
    computed,
    gradients,
    products,
    products_among,
    stored,
    traced,
)


def test_the_table_is_that_of_the_code(monkeypatch):
    """Oracle: the table, written anew by its command."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    dtypes.main(["--check"])


def test_products_are_read_within_loops_conditions_and_derivatives():
    """Oracle: by hand: a loop with a product of float32, a branch with an exact one, and dot's gradients."""
    x, w = array(4, 8), array(8, 8, dtype="float32")

    def inner(x, w):
        looped = jax.lax.fori_loop(0, 3, lambda i, a: a @ w, x.astype(jnp.float32))
        exact = jnp.matmul(looped, w, precision="highest")
        return jax.lax.cond(looped[0, 0] > 0, lambda: exact, lambda: jnp.exp(looped))

    found = "float32 → float32, float32 (exact) → float32"
    assert products(inner, x, w) == found and computed("exp", inner, x, w) == "float32"

    def linear(x, w):
        return dot("md,df->mf", x, w)

    assert products(linear, x, w) == products(gradients(linear), x, w) == "bfloat16 → float32"
    assert products_among(traced(linear, x, w), width=9) == ""


def test_arrays_of_a_rarer_dtype_are_named():
    """Oracle: by hand; integers do not count."""
    tree = {
        "a": array(1),
        "b": array(2),
        "c": array(1, dtype="float32"),
        "d": array(1, dtype="int32"),
    }
    assert stored(tree) == "bfloat16, float32 (c)" and stored([array(1), array(1)]) == "bfloat16"


def test_in_float32_all_that_reads_the_config_is_float32(monkeypatch):
    """Oracle: the guide's words above the table."""
    monkeypatch.setattr(dtypes, "CONFIG", dataclasses.replace(dtypes.CONFIG, dtype="float32"))
    params = nn.unbox(abstract_init(dtypes.CONFIG))
    cells = dtypes.in_training(params) | dtypes.in_a_rollout(params)
    for part in ("residual stream", "weights in a rollout", "cache"):
        assert cells[part] == "float32"
    assert cells["router"] == cells["logits"] == "float32 → float32"
