"""The decoder's FP8 products and their loss of precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import forward
from tests.losses.test_next_token import make_batch
from tests.quick import others_slow
from tests.tiny import VOCAB, tiny_model

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 9))


def roundings(jaxpr):
    """The number of conversions to E4M3 in a program, loop bodies counted once."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.params.get("new_dtype") == jnp.float8_e4m3fn
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += roundings(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize(
    ("kind", "linears"), [("mla_moe", 8 + 10), ("sparse", 10 + 12), ("gqa", 6)]
)
def test_every_linear_rounds_both_its_operands_and_nothing_else(kind, linears):
    """Oracle: by hand. MLA has six products with weights (two for q, three for the latent, one out), a gated
    MLP two, an MoE layer two of its routed and two of its shared experts; an indexer has two; GQA has four,
    in both layers alike. No other is in FP8: embedding, head, router, attention, an indexer's head weights.
    """
    config, params = tiny_model(kind)
    config = dataclasses.replace(config, fp8=True)
    program = jax.make_jaxpr(lambda p: forward(config, p, TOKENS))(params)
    assert roundings(program.jaxpr) == 2 * linears


@pytest.mark.parametrize("kind", others_slow(["mtp", "sparse", "gqa"], "gqa"))
def test_fp8_errs_by_a_few_percent(kind):
    """Oracle: the float32 loss and gradients. An operand rounds by 2.6% rms, and a gradient passes through
    about twenty products of two operands, and through choices of experts. Its cosine with the float32
    gradient must be above 0.8; with a wrong scale or transposition it would be near 0.
    """
    config, params = tiny_model(kind)
    batch, mtp_weight = make_batch(), 0.3 if kind == "mtp" else None

    def gradients(config):
        loss = jax.value_and_grad(
            lambda p: next_token_loss(config, p, batch, mtp_weight=mtp_weight)[0]
        )
        value, grads = jax.jit(loss)(params)
        return value, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    exact, rounded = gradients(config), gradients(dataclasses.replace(config, fp8=True))
    assert 1e-5 < abs(rounded[0] / exact[0] - 1) < 0.02
    norms = jnp.linalg.norm(exact[1]) * jnp.linalg.norm(rounded[1])
    assert 0.8 < exact[1] @ rounded[1] / norms < 0.9999
