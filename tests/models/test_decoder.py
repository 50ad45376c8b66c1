"""The residual stack: what it recomputes, and what it tells of layers that overflowed."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models import ModelConfig, hidden_states
from tests.tiny import MLA_MOE, tiny_model


def test_behind_a_layer_that_gave_nan_no_load_is_a_number():
    """Oracle: the loads of the same tokens through sound layers: two of three count numbers."""
    config, params = tiny_model("mla_moe")
    config = ModelConfig(**MLA_MOE | dict(num_hidden_layers=4))
    params = params | {
        "moe_layers": jax.tree.map(lambda x: jnp.concatenate([x] * 3), params["moe_layers"])
    }
    tokens = np.random.default_rng(0).integers(0, 50, (2, 7))
    ones = np.ones_like(tokens)

    def loads(params):
        return hidden_states(config, params, tokens, segment_ids=ones, positions=ones)[1].load

    wanted = loads(params)
    down = params["moe_layers"]["ffn"]["down"].at[1].set(jnp.nan)
    params["moe_layers"]["ffn"]["down"] = down
    found = loads(params)
    np.testing.assert_array_equal(found[:2], wanted[:2])
    assert np.isnan(found[2]).all() and wanted.sum() == 3 * 2 * 14
