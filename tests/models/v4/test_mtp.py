"""Multi-token prediction by numpy around a layer of transformers, which has no such module itself."""

import numpy as np
import torch

from deepseek_jax.models.v4.config import MTP_LAYER, WINDOW
from deepseek_jax.models.v4.decoder import predict_further
from tests.models.v4 import tiny
from tests.ops.test_attention import normal
from tests.ops.test_streams import loop_logits

CONFIG = tiny.config(num_nextn_predict_layers=1)
D, Z, T, EPS = CONFIG.hidden_size, CONFIG.hc_mult, 24, 1e-6


def norm(x, scale):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def test_a_module_predicts_from_streams_and_the_next_embedding():
    """Oracle: the equations by numpy in float64, around transformers' layer with a window and a router.
    Each stream has the same embedding; the rotation has the plain base, without YaRN.
    """
    layers = (*tiny.LAYERS, WINDOW)
    model = tiny.hf_model(layers)
    named = tiny.tensors(model)
    block = tiny.layer(tiny.Names(named, f"model.layers.{len(layers) - 1}."), CONFIG, MTP_LAYER)
    tokens, x = np.random.default_rng(0).integers(0, 96, (2, T)), normal(1, 2, T, Z, D)
    e_proj, h_proj = 0.3 * normal(2, D, D), 0.3 * normal(3, D, D)  # [out in]
    enorm, hnorm, head_norm = (1 + 0.3 * normal(seed, D) for seed in (4, 5, 6))
    end = dict(mix=0.3 * normal(7, Z, D, Z), base_bias=normal(8, Z), scale=np.float32([0.8]))
    params = tiny.params(named, CONFIG) | dict(
        mtp_0=dict(
            embedding_input=e_proj.T,
            hidden_input=h_proj.T,
            embedding_norm=dict(scale=enorm),
            hidden_norm=dict(scale=hnorm),
            head_norm=dict(scale=head_norm),
            stream_end=end,
            block=block,
        )
    )

    embedding = named["model.embed_tokens.weight"][tokens]
    streams = (norm(embedding, enorm) @ e_proj.T)[:, :, None] + norm(x, hnorm) @ h_proj.T
    at = torch.arange(T)
    age = at[:, None] - at
    mask = torch.where((age >= 0) & (age < CONFIG.sliding_window), 0.0, -torch.inf)[None, None]
    with torch.no_grad():
        streams = torch.tensor(streams, dtype=torch.float32)
        rope = model.model.rotary_emb(streams, position_ids=at[None], layer_type="main")
        streams = model.model.layers[-1](
            streams,
            position_embeddings={"main": rope},
            position_ids=at[None],
            attention_mask=mask,
        ).numpy()
    exact = np.zeros((2, T, D))
    for token in np.ndindex(2, T):
        logits = loop_logits(streams[token], end["mix"], EPS) * end["scale"] + end["base_bias"]
        read = 1 / (1 + np.exp(-logits)) + CONFIG.hc_eps
        exact[token] = norm(read @ streams[token], head_norm)

    ones = np.ones((2, T), np.int32)
    positions = np.broadcast_to(np.arange(T), (2, T))
    hidden, ours, report = predict_further(
        CONFIG, params, 0, x, tokens, segment_ids=ones, positions=positions
    )
    np.testing.assert_allclose(ours, streams, atol=1e-5 * np.abs(streams).max())
    np.testing.assert_allclose(hidden, exact, atol=1e-5 * np.abs(exact).max())
    assert (
        report.indexer is None and report.routing.load.sum() == 2 * T * CONFIG.num_experts_per_tok
    )
