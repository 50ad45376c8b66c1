"""Packed rows, borders of windows, and what a token must not know."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.v4.config import CSA, HCA, WINDOW
from deepseek_jax.models.v4.decoder import forward, run_layers
from tests.models.v4 import tiny

LAYERS = (WINDOW, CSA, HCA)
CONFIG = tiny.config(num_hidden_layers=3, layer_types=LAYERS)
TOKENS = np.random.default_rng(0).integers(0, 96, (1, 48))


@pytest.fixture(scope="module")
def params():
    return tiny.params(tiny.tensors(tiny.hf_model(LAYERS)), CONFIG)


def test_packed_documents_are_as_they_are_alone(params):
    """Oracle: each document alone, logits and gradients. Documents of 21 tokens begin at 3 and 24, no
    multiples of a window; padding left and right.
    """
    alone = TOKENS[0, 3:45].reshape(2, 21)
    segments = np.repeat([[0, 5, 2, 0]], [3, 21, 21, 3], axis=1)
    probe = np.random.default_rng(1).normal(size=(2, 21, 96)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=2)
    def gradients(params, tokens, is_packed):
        def value(params):
            logits = forward(CONFIG, params, tokens, segment_ids=segments if is_packed else None)
            logits = logits[0, 3:45].reshape(probe.shape) if is_packed else logits
            return (logits * probe).sum(), logits

        return jax.grad(value, has_aux=True)(params)

    (packed, logits), (exact, exact_logits) = (
        gradients(params, TOKENS, True),
        gradients(params, alone, False),
    )
    scale = np.abs(exact_logits).max()
    np.testing.assert_allclose(logits, exact_logits, atol=2e-6 * scale, rtol=0)
    # A scale of the streams is one number, whose gradient adds up all tokens and layers
    for ours, other in zip(jax.tree.leaves(packed), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4 * np.abs(other).max(), rtol=0)


def test_no_token_knows_a_later_one(params):
    """Oracle: the same row with another token at t + 1: equal bits up to t, and not after, for every t."""
    hidden = jax.jit(lambda tokens: run_layers(CONFIG, params, tokens).hidden[0])
    base = np.asarray(hidden(TOKENS))
    for t in range(47):
        other = TOKENS.copy()
        other[0, t + 1] = (other[0, t + 1] + 1) % 96
        changed = np.asarray(hidden(other))
        np.testing.assert_array_equal(changed[: t + 1], base[: t + 1])
        assert (changed[t + 1] != base[t + 1]).any()


@pytest.mark.parametrize("at", [0, 100, 127])
def test_an_entry_of_128_tokens_is_seen_from_its_last_token_on(params, at):
    """Oracle: by hand: in one layer, whose window of 8 does not reach back, another token `at` changes the
    token itself, those that have it in their window, and all from 127 on: the last of the entry's tokens.
    """
    config = tiny.config(
        num_hidden_layers=1, layer_types=(HCA,), compress_rates=((HCA, 128),), num_hash_layers=0
    )
    layer = dict(params["layers_2"])
    compressor = layer["attention"]["compressor"] | dict(
        position_bias=np.random.default_rng(2).normal(size=(128, 1, 16)).astype(np.float32)
    )
    layer["attention"] = layer["attention"] | dict(compressor=compressor)
    one_layer = {k: v for k, v in params.items() if not k.startswith("layers_")} | dict(
        layers_0=layer
    )
    tokens = np.random.default_rng(3).integers(0, 96, (1, 131))
    other = tokens.copy()
    other[0, at] = (other[0, at] + 1) % 96
    hidden = jax.jit(lambda tokens: run_layers(config, one_layer, tokens).hidden[0])
    differs = (np.asarray(hidden(tokens)) != np.asarray(hidden(other))).any(-1)
    t = np.arange(131)
    np.testing.assert_array_equal(differs, ((t >= at) & (t < at + 8)) | (t >= 127))


@pytest.mark.slow
def test_an_indexer_of_all_entries_is_no_indexer(params):
    """Oracle: indexer_loss="dense", in which attention sees all entries; then a top-k of 4 gives another
    result.
    """

    def logits(**changes):
        config = dataclasses.replace(CONFIG, **changes)
        return np.asarray(jax.jit(forward, static_argnums=0)(config, params, TOKENS))

    dense = logits(indexer_loss="dense")
    np.testing.assert_allclose(logits(index_topk=12), dense, atol=1e-5)
    assert np.abs(logits() - dense).max() > 1e-2


def test_the_indexers_loss_trains_indexers_and_nothing_else(params):
    """Oracle: zero gradients elsewhere, and one for each weight of the indexer, whose loss is positive."""
    config = dataclasses.replace(CONFIG, indexer_loss="sparse")

    def value(params):
        reports = run_layers(config, params, jnp.asarray(TOKENS)).reports.values()
        losses = jnp.stack([r.indexer for r in reports if r.indexer is not None])
        return losses.sum(), losses

    gradients, losses = jax.jit(jax.grad(value, has_aux=True))(params)
    assert losses.shape == (1,) and (losses > 0).all()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        is_of_indexer = any(key.key == "indexer" for key in path)
        assert np.asarray(gradient).any() == is_of_indexer, path


def test_routing_counts_real_tokens_and_a_layer_of_nan_counts_none(params):
    """Oracle: 30 real tokens of 3 experts each, in each of 3 layers; NaN, where a finite load would move a
    bias.
    """
    segments = np.repeat([[1, 0]], [30, 18], axis=1)

    @jax.jit
    def load(params):
        states = run_layers(CONFIG, params, jnp.asarray(TOKENS), segment_ids=jnp.asarray(segments))
        return jnp.stack([report.routing.load for report in states.reports.values()])

    np.testing.assert_array_equal(load(params).sum(-1), [90] * 3)
    assert np.isnan(load(params | dict(embedding=params["embedding"] * np.nan))).all()
