"""The decoder against transformers' DeepseekV4ForCausalLM, eager, in float32.

Rows are single documents from position 0: transformers counts windows from column 0, whatever the mask is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from deepseek_jax.models.layers import has_gradient
from deepseek_jax.models.v4.decoder import forward, init_params
from tests.models.v4 import tiny

CONFIG = tiny.config()
# 48 tokens: 12 entries of CSA for a top-k of 4, 6 of HCA, six windows
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 48))
# Both sides sum the same float32 products in other orders: measured 2e-6 of the largest logit
LOGITS = 1e-5


@pytest.fixture(scope="module")
def model():
    return tiny.hf_model()


@pytest.fixture(scope="module")
def params(model):
    return tiny.params(tiny.tensors(model), CONFIG)


def test_the_parameters_are_the_tensors_of_transformers(params):
    """Oracle: the shapes of transformers' tensors, by tiny.params."""
    made = jax.eval_shape(lambda: nn.unbox(init_params(CONFIG, jax.random.key(0))))
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, params)


def test_no_optimizer_moves_biases_tables_indexers_and_later_tokens(params):
    """Oracle: by hand, which parameters the loss of the next token trains; else weight decay would shrink
    them.
    """
    unmoved = {
        path
        for path in flatten_dict(dict(params, mtp_0=dict(hidden_input=0)))
        if not has_gradient(tuple(jax.tree_util.DictKey(key) for key in path))
    }
    indexers = {path for path in unmoved if path[2:3] == ("indexer",)}
    routers = [("layers_0", "ffn", "expert_table")]
    routers += [(f"layers_{layer}", "ffn", "router_bias") for layer in (1, 2, 3)]
    assert unmoved - indexers == {*routers, ("mtp_0", "hidden_input")} and len(indexers) == 2 * 6


def test_logits_agree(model, params):
    """Oracle: transformers."""
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    ours = jax.jit(lambda p, tokens: forward(CONFIG, p, tokens))(params, TOKENS)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=LOGITS * np.abs(theirs).max(), rtol=0)


def test_gradients_of_the_cross_entropy_agree(model, params):
    """Oracle: autograd through transformers, tensor by tensor.

    Off by at most 1e-4 of the tensor's largest gradient: float32 sums in other orders, through the 20
    iterations of each sublayer's mixing.
    """

    def loss(params):
        logprobs = jax.nn.log_softmax(forward(CONFIG, params, TOKENS)[:, :-1])
        return -jnp.take_along_axis(logprobs, TOKENS[:, 1:, None], axis=-1).mean()

    model.zero_grad()
    logits = model(torch.tensor(TOKENS)).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(TOKENS[:, 1:]).flatten()
    ).backward()
    theirs = flatten_dict(tiny.params(tiny.gradients(model), CONFIG))
    ours = flatten_dict(jax.jit(jax.grad(loss))(params))
    # Balancing moves the bias, nothing the table, and the indexer's own loss the indexers
    unmoved = {
        path for path in ours if path[-1] in ("router_bias", "expert_table") or "indexer" in path
    }
    assert {path for path, gradient in theirs.items() if gradient.any()} == ours.keys() - unmoved
    assert not any(ours[path].any() for path in unmoved)
    for path in ours.keys() - unmoved:
        largest = np.abs(theirs[path]).max()
        np.testing.assert_allclose(
            ours[path], theirs[path], atol=1e-4 * largest, rtol=0, err_msg=str(path)
        )
