"""DeepSeek-V4 in bfloat16, what stays float32 there, and the release's roundings inside the model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.v4 import attention, compressor, indexer, moe
from deepseek_jax.models.v4.config import CSA, HCA
from deepseek_jax.models.v4.decoder import forward, init_params
from deepseek_jax.models.v4.streams import StreamMixing
from deepseek_jax.ops import streams, window_attention
from deepseek_jax.ops.compress import seen_entries
from deepseek_jax.ops.release_rounding import bfloat16_index_scores, fp4_index, fp8_keys
from deepseek_jax.ops.selection import unpacked
from tests.models.v4 import tiny
from tests.models.v4.test_training import random_params
from tests.ops.test_attention import normal
from tests.quick import others_slow

CONFIG = tiny.config()
HALF = dataclasses.replace(CONFIG, dtype="bfloat16")
B, T = 4, 256
SEGMENTS = np.ones((B, T), np.int32)
POSITIONS = np.broadcast_to(np.arange(T), (B, T))
X = normal(0, B, T, CONFIG.hidden_size).astype(jnp.bfloat16)
# float32 sums in other orders
CLOSE = 1e-5


@pytest.fixture(scope="module")
def params():
    """Parameters whose matrices are exact in bfloat16."""
    made = tiny.params(tiny.tensors(tiny.hf_model()), CONFIG)
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), made)


def difference(ours, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(ours, np.float64) - exact).max() / np.abs(exact).max()


def recorded(monkeypatch, module, name):
    """The calls of module.name from here on: a list of (arguments, result)."""
    calls, right = [], getattr(module, name)

    def record(*arguments, **options):
        result = right(*arguments, **options)
        calls.append((arguments, result))
        return result

    monkeypatch.setattr(module, name, record)
    return calls


def off_mixing(params, monkeypatch):
    """How far the coefficients of bfloat16 streams are from those of the same streams in float32."""
    x = normal(1, 2, 9, CONFIG.hc_mult, CONFIG.hidden_size).astype(jnp.bfloat16)
    variables = {"params": params["layers_1"]["attention_mixing"]}
    ours = StreamMixing(HALF).apply(variables, jnp.asarray(x))
    monkeypatch.undo()
    exact = StreamMixing(CONFIG).apply(variables, jnp.asarray(x, jnp.float32))
    assert all(part.dtype == jnp.float32 for part in ours)
    return max(difference(*pair) for pair in zip(ours, exact, strict=True))


def off_choice(params, monkeypatch):
    """The share of tokens whose experts are not the best by float64 scores of the same inputs."""
    part = params["layers_1"]["ffn"]
    calls = recorded(monkeypatch, moe, "expert_parallel")
    # Few tokens have two experts that a rounding exchanges
    x, ones = normal(6, 16, 512, CONFIG.hidden_size).astype(jnp.bfloat16), np.ones((16, 512), int)
    moe.MoE(HALF, has_table=False).apply({"params": part}, jnp.asarray(x), ones, ones)
    experts = np.asarray(calls[0][0][2])
    logits = x.astype(np.float64) @ part["router"].astype(np.float64)
    scores = np.sqrt(np.log1p(np.exp(logits))) + part["router_bias"]
    best = np.argsort(-scores, axis=-1)[..., : CONFIG.num_experts_per_tok]
    return (np.sort(experts) != np.sort(best)).any(-1).mean()


def off_pooling(params, monkeypatch):
    """How far HCA's pooled entries are from a loop over windows in float64, before their norm."""
    part = params["layers_2"]["attention"]["compressor"]
    places = compressor.places(HALF, 8, jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    calls = recorded(monkeypatch, compressor, "pool")
    module = compressor.Compressor(HALF, 8, CONFIG.head_dim, "head_dim", overlaps=False)
    entries = module.apply({"params": part}, jnp.asarray(X), places.entries).entries
    assert entries.dtype == jnp.bfloat16
    x = X.astype(np.float64).reshape(B, T // 8, 8, -1)
    values, logits = (np.einsum("bwod,dzx->bwox", x, part[name]) for name in ("kv", "gate"))
    weights = np.exp(logits + part["position_bias"][:, 0])
    exact = (weights * values).sum(2) / weights.sum(2)
    return difference(calls[0][1], exact)


def off_softmax(params, monkeypatch):
    """How far the weights of window, entries and sink are from a softmax in float64."""
    q, kv, sink = normal(2, 1, 8, 3, 16), normal(3, 1, 8, 16), normal(4, 3)
    q, kv = (jnp.asarray(x, jnp.bfloat16) for x in (q, kv))
    ones = jnp.ones((1, 8), jnp.int32)
    keys = window_attention.Keys(kv, ones, jnp.asarray(sink), None)
    block = q, ones, jnp.arange(8)
    _, ours, _ = window_attention.attention_weights(keys, block, window=8, scale=0.25)
    q, kv = (np.asarray(x, np.float64) for x in (q, kv))
    scores = np.where(np.tri(8), np.einsum("bthx,bsx->bhts", q, kv) / 4, -np.inf)
    weights = np.exp(scores)
    return difference(
        ours, weights / (weights.sum(-1, keepdims=True) + np.exp(sink)[:, None, None])
    )


def off_index_scores(params, monkeypatch):
    """How far the indexer's scores are from float64 sums over its own operands."""
    part = params["layers_1"]["attention"]["indexer"]
    places = compressor.places(HALF, 4, jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
    latent = normal(5, B, T, CONFIG.q_lora_rank).astype(jnp.bfloat16)
    module = indexer.LightningIndexer(HALF, 4)
    index, _ = module.apply({"params": part}, jnp.asarray(X), jnp.asarray(latent), places)
    assert (index.q.dtype, index.k.dtype, index.w.dtype) == (jnp.bfloat16,) * 2 + (jnp.float32,)
    q, k = (np.asarray(x, np.float64) for x in (index.q, index.k))
    heads = X.astype(np.float64) @ part["head_weights"] / 4
    positive = np.maximum(np.einsum("btjy,bwy->btjw", q, k) * q.shape[-1] ** -0.5, 0)
    return difference(indexer.index_scores(*index), np.einsum("btj,btjw->btw", heads, positive))


PARTS = {
    "mixing": off_mixing,
    "choice of experts": off_choice,
    "pooling": off_pooling,
    "softmax": off_softmax,
    "index scores": off_index_scores,
}


@pytest.mark.parametrize("part", PARTS)
def test_what_the_paper_keeps_in_float32_is_float32(params, monkeypatch, part):
    """Oracle: float64 over the same bfloat16 inputs, up to float32's rounding."""
    assert PARTS[part](params, monkeypatch) < CLOSE


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def replaced(module, name, wrap):
    return lambda monkeypatch: monkeypatch.setattr(module, name, wrap(getattr(module, name)))


def product_in_bfloat16(right):
    return lambda spec, x, w, *_: rounded(right(spec, x.astype(jnp.bfloat16), w))


MISTAKES = {
    "mixing": replaced(streams, "coefficient_logits", lambda right: lambda *a: rounded(right(*a))),
    "choice of experts": replaced(moe, "dot", product_in_bfloat16),
    "pooling": replaced(compressor, "dot", product_in_bfloat16),
    "softmax": replaced(window_attention, "_scores", lambda right: lambda *a: rounded(right(*a))),
    "index scores": replaced(indexer, "index_scores", lambda right: bfloat16_index_scores),
}


@pytest.mark.parametrize("part", others_slow(PARTS, "mixing", "index scores"))
def test_each_of_them_in_bfloat16_is_caught(params, monkeypatch, part):
    """Oracle: the comparison above, which this code passes without the mistake."""
    MISTAKES[part](monkeypatch)
    assert PARTS[part](params, monkeypatch) > 10 * CLOSE


@pytest.mark.parametrize("held", others_slow(["float32", "bfloat16"], "bfloat16"))
def test_logits_in_bfloat16_are_those_of_float32(params, held):
    """Oracle: the model in float32, with parameters held in either dtype. Tokens have all experts and attend
    to all entries: a choice between near ties would be another one. Measured 3% of the
    largest logit.
    """
    every = dict(num_experts_per_tok=8, index_topk=12)
    table = np.tile(np.arange(8, dtype=np.float32), (96, 1))
    ffn = params["layers_0"]["ffn"] | dict(expert_table=table)
    made = params | dict(layers_0=params["layers_0"] | dict(ffn=ffn))
    tokens = np.random.default_rng(0).integers(0, 96, (2, 48))
    run = jax.jit(forward, static_argnums=0)
    exact = np.asarray(run(dataclasses.replace(CONFIG, **every), made, tokens))
    made = jax.tree.map(lambda x: jnp.asarray(x, held), made)
    ours = run(dataclasses.replace(HALF, **every), made, tokens)
    error = np.abs(ours - exact).max() / np.abs(exact).max()
    assert ours.dtype == jnp.float32 and 2**-12 < error < 0.06


@pytest.mark.slow
def test_the_releases_roundings_are_of_keys_and_index_operands(params, monkeypatch):
    """Oracle: the ops, which loops hold, on what the same model computes without them: keys of window, CSA
    and HCA, and the selection by rounded operands. One layer, whose inputs are the same.
    """
    sizes = dict(head_dim=72, index_head_dim=32, num_hash_layers=0)
    for kind, rate in ((CSA, 4), (HCA, 8)):
        config = tiny.config(
            num_hidden_layers=1, layer_types=(kind,), compress_rates=((kind, rate),), **sizes
        )
        release = dataclasses.replace(config, release_rounding=True)
        made = random_params(config)
        tokens = np.random.default_rng(1).integers(0, 96, (2, 48))
        calls = {}
        for name, chosen in (("plain", config), ("release", release)):
            with monkeypatch.context() as patch:
                keys = recorded(patch, attention, "attend_window_rows")
                selections = recorded(patch, indexer, "select_entries")
                forward(chosen, made, tokens)
            calls[name] = keys[0][0][1], selections
        (plain, plain_selections), (ours, selections) = calls["plain"], calls["release"]
        for exact, found in ((plain.kv, ours.kv), (plain.entries.kv, ours.entries.kv)):
            np.testing.assert_array_equal(found, fp8_keys(exact, 8))
            assert (np.asarray(found) != exact)[..., :64].mean() > 0.5
        assert bool(selections) == bool(plain_selections) == (kind == CSA)
        if kind == CSA:
            (q, k, w, segments, windows, topk), bits = selections[0]
            for exact, found in zip(plain_selections[0][0][:2], (q, k), strict=True):
                np.testing.assert_array_equal(found, fp4_index(exact, 8))
            scores = np.where(
                seen_entries(segments, np.arange(48), windows),
                bfloat16_index_scores(q, k, w),
                -np.inf,
            )
            best = np.argsort(-scores, axis=-1, kind="stable")[..., :topk]
            chosen = np.zeros(scores.shape, bool)
            np.put_along_axis(chosen, best, True, axis=-1)
            np.testing.assert_array_equal(unpacked(bits, 12), chosen & (scores > -np.inf))
            assert (bits != plain_selections[0][1]).any()


def test_training_with_the_releases_roundings_is_refused():
    """Oracle: the message names the field."""
    config = tiny.config(head_dim=72, index_head_dim=32, release_rounding=True)
    shapes = jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0))))
    tokens = np.zeros((1, 16), np.int32)
    with pytest.raises(ValueError, match="set release_rounding to False to train"):
        jax.eval_shape(jax.grad(lambda p: forward(config, p, tokens).sum()), shapes)
