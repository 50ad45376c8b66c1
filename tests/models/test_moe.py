"""The choice of experts by the fields of a config."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.moe import choose_experts
from deepseek_jax.ops.routing import FREE
from tests.tiny import CONFIGS

MOE = CONFIGS["mla_moe"]
V2 = dict(model_type="deepseek_v2", scoring_func="softmax", norm_topk_prob=False)


@pytest.mark.parametrize("fields", [{}, V2, dict(routed_scaling_factor=1.5)])
def test_a_kept_choice_is_weighed_by_the_same_fields_as_a_free_one(fields):
    """Oracle: the free choice itself, kept; a token whose choice is not kept has its own, and another choice
    has other experts.
    """
    config = dataclasses.replace(MOE, **fields)
    logits = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 8)))
    bias = None if fields is V2 else jnp.float32(np.linspace(-0.1, 0.1, 8))
    free, weights = choose_experts(config, logits, bias, None)
    kept = np.asarray(free, np.uint16)
    kept[0] = FREE
    again, same = choose_experts(config, logits, bias, kept)
    np.testing.assert_array_equal(again, free)
    np.testing.assert_allclose(same, weights, rtol=1e-6)
    total = config.routed_scaling_factor if config.norm_topk_prob else None
    assert total is None or np.allclose(weights.sum(-1), total)
    other, _ = choose_experts(config, logits, bias, (kept + (kept != FREE)) % 8)
    assert (np.asarray(other)[1] == (kept[1] + 1) % 8).all()
