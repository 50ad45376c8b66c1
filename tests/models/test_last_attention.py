"""Queries, keys and values of the last attention, against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

from deepseek_jax.checkpoint import load_hf
from deepseek_jax.models import last_attention, layer_states
from tests.models.families import write_tiny_checkpoint
from tests.tiny import tiny_model

SEEN = []


def spy(module, query, key, value, mask, **options):
    """transformers' own attention, which also appends each layer's q, k and v to SEEN: [b heads t size]."""
    SEEN.append([x.detach().numpy().swapaxes(1, 2) for x in (query, key, value)])
    return eager_attention_forward(module, query, key, value, mask, **options)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3"])
def test_the_last_attention_is_of_the_last_layers_input(family, tmp_path):
    """Oracle: q, k and v of transformers' last layer, compared by the products of each token with all others,
    which do not depend on the order of rotary pairs; 1e-4: float32 rounding through the layers.
    """
    model = write_tiny_checkpoint(family, tmp_path)
    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", eager_mask)
    model.set_attn_implementation("spy")
    tokens = np.random.default_rng(0).integers(0, 96, (2, 7))
    SEEN.clear()
    model(torch.from_numpy(tokens))
    config, params = load_hf(tmp_path)
    assert len(SEEN) == config.num_hidden_layers
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    _, _, states = layer_states(config, params, jnp.asarray(tokens), positions=positions)
    for ours, theirs in zip(
        last_attention(config, params, states, positions), SEEN[-1], strict=True
    ):
        found, wanted = (np.einsum("bthx,bshx->bhts", x, x) for x in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def normed(x, scale, eps=1e-6):
    return x / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + eps) * np.asarray(scale)


def test_the_last_attention_reads_the_last_layers_weights():
    """Oracle: numpy's products with the last layer's input, the state before the last, at position 0, where
    nothing turns. A model of two layers has just enough states; one state is refused.
    """
    rng = np.random.default_rng(0)
    positions = jnp.zeros((2, 5), jnp.int32)
    for kind, stack in (("gqa", "dense_layers"), ("mla_moe", "moe_layers")):
        config, params = tiny_model(kind)
        states = rng.normal(size=(2, 2, 5, config.hidden_size)).astype(np.float32)
        q, k, v = last_attention(config, params, states, positions)
        attention = {name: leaf for name, leaf in params[stack]["attention"].items()}
        x = normed(states[0], params[stack]["attention_norm"]["scale"][-1])
        if kind == "gqa":
            for found, name in ((q, "q"), (k, "k"), (v, "v")):
                exact = np.einsum("btd,dhx->bthx", x, attention[name][-1])
                exact += np.asarray(attention[f"{name}_bias"][-1])
                np.testing.assert_allclose(found, exact, atol=1e-5, rtol=1e-5)
        else:
            latent = (x @ np.asarray(attention["kv_down"][-1]))[..., : config.kv_lora_rank]
            latent = normed(latent, attention["kv_norm"]["scale"][-1])
            exact = np.einsum("btc,chu->bthu", latent, attention["v_up"][-1])
            np.testing.assert_allclose(v, exact, atol=1e-4, rtol=1e-4)
            assert q.shape == k.shape == (2, 5, 4, 12)
    with pytest.raises(ValueError, match="^num_hidden_layers=2: .* at least 2 layers"):
        last_attention(config, params, states[:1], positions)
