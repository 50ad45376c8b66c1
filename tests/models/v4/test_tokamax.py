"""DeepSeek-V4's equations against tokamax's references in plain JAX, of Python 3.12 or newer.

Its csa_gather moves bytes of a paged cache, which nothing here does.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.models.layers import rms_norm
from deepseek_jax.ops import streams
from deepseek_jax.ops.compress import find_windows, pool, seen_entries
from deepseek_jax.ops.release_rounding import fp8_keys
from deepseek_jax.ops.rope import apply_rope_last, rope_frequencies, rope_tables
from deepseek_jax.ops.selection import index_scores, select
from tests.models.v4.tiny import ROPE_DIM, half_split
from tests.ops.test_attention import normal

NEEDS = dict(reason="needs tokamax, which needs Python 3.12")
mhc = pytest.importorskip("tokamax._src.ops.mhc.reference", **NEEDS)
compressor = pytest.importorskip("tokamax._src.ops.dsv4_compressor.reference", **NEEDS)
indexer = pytest.importorskip("tokamax._src.ops.lightning_indexer.reference", **NEEDS)

T, Z, D = 24, 4, 32
# float32 sums in other orders
CLOSE = dict(rtol=1e-5, atol=1e-5)


def test_streams_are_read_and_written_as_tokamax_does():
    """Oracle: its mhc_pre and mhc_post, whose inputs and results are bfloat16; coefficients are float32."""
    x, output = normal(0, T, Z, D).astype(jnp.bfloat16), normal(1, T, D).astype(jnp.bfloat16)
    fn, base, scale = normal(2, 24, Z * D) / 8, normal(3, 24), normal(4, 3)
    eps = 1e-6
    post, comb, read = mhc.mhc_pre(
        jnp.asarray(x.reshape(T, -1)), fn, scale, base, eps, eps, eps, 2.0, 20
    )
    written = mhc.mhc_post(jnp.asarray(output), jnp.asarray(x.reshape(T, -1)), post, comb)

    w_zdx = np.moveaxis(fn.reshape(24, Z, D), 0, -1)
    x_btzd = jnp.asarray(x[None])
    logits = streams.coefficient_logits(x_btzd, w_zdx, eps)
    mixing = streams.mixing(logits, base, scale, iterations=20, eps=eps)
    np.testing.assert_allclose(mixing.write[0], post, **CLOSE)
    np.testing.assert_allclose(mixing.carry[0], comb, **CLOSE)
    close = dict(rtol=2**-7, atol=2**-7)
    ours = streams.read(x_btzd, mixing.read)[0]
    np.testing.assert_allclose(*(np.float32(a) for a in (ours, read)), **close)
    ours = streams.write(x_btzd, jnp.asarray(output[None]), mixing)[0].reshape(T, -1)
    np.testing.assert_allclose(*(np.float32(a) for a in (ours, written)), **close)


@pytest.mark.parametrize(("rate", "series"), [(4, 2), (8, 1)], ids=["CSA", "HCA"])
def test_entries_are_those_of_tokamax(rate, series):
    """Oracle: its gather of a window's states, and its pooling, norm and rotation of pairs side by side."""
    width, eps = 16, 1e-6
    values, logits = normal(0, T, series, width), normal(1, T, series, width)
    bias, scale = normal(2, rate, series, width), 1 + 0.3 * normal(3, width)
    cos, sin = rope_tables(np.arange(T), rope_frequencies(ROPE_DIM, 100.0))
    scores = logits + bias[np.arange(T) % rate]
    last = np.arange(rate - 1, T, rate)
    states = np.concatenate([values.reshape(T, -1), scores.reshape(T, -1)], axis=-1)
    found = compressor.gather_state_windows(
        jnp.asarray(states[None]), last, np.zeros(1, int), 1, 0 * last, T, width, rate, series == 2
    )
    table = np.concatenate([cos, sin], axis=-1)
    exact = compressor.compress_norm_rope(*found, scale, table, last + 1 - rate, eps, ROPE_DIM)

    windows = find_windows(np.arange(T)[None], np.ones((1, T), np.int32), rate)
    # Our last dimensions are half-split
    split = (half_split(array) for array in (values, logits, bias, scale))
    values, logits, bias, scale = split
    entries = rms_norm(pool(values[None], logits[None], bias, windows), scale, eps)
    rope = rope_tables(windows.positions, rope_frequencies(ROPE_DIM, 100.0))
    ours = apply_rope_last(entries[:, :, None], *rope)[0, :, 0]
    assert len(ours) == T // rate
    np.testing.assert_allclose(ours, half_split(np.asarray(exact)), **CLOSE)


def test_keys_are_rounded_as_tokamax_rounds_them():
    """Oracle: its FP8 in blocks of 64 with scales of E8M0."""
    x = normal(0, T, 128) * np.float32(10.0) ** normal(1, T, 1)
    values, scale = compressor.quantize_fp8_ue8m0(jnp.asarray(x), 64)
    exact = np.float32(values).reshape(T, 2, 64) * np.float32(scale)[..., None]
    np.testing.assert_array_equal(fp8_keys(jnp.asarray(x), 0), exact.reshape(T, 128))


def test_entries_are_selected_as_tokamax_selects_them():
    """Oracle: its lightning_indexer. Each query is a sequence of its own: among many queries of one sequence
    it shows a query the entry of a window that is not yet finished, which the release does not.
    """
    rate, heads, width, page, topk = 4, 16, 128, 4, 2
    q, w = normal(0, T, heads, width), normal(1, T, heads)
    k = normal(2, T // rate, width).astype(ml_dtypes.float8_e4m3fn)
    entries = T // rate
    pages = -(-entries // page)
    cache = np.zeros((pages * page, 256), np.uint8)
    cache[:entries, :width] = k.view(np.uint8)
    cache[:, width] = 127  # a scale of 1
    exact = indexer.lightning_indexer(
        q,
        w / np.sqrt(np.float32(width)),
        jnp.asarray(cache.reshape(pages, 1, page, 256)),
        np.arange(1, T + 1, dtype=np.int32),
        np.tile(np.arange(pages, dtype=np.int32), T),
        np.arange(T + 1, dtype=np.int32),
        np.array([0, 0, T], np.int32),
        k=topk,
        compression_ratio=rate,
    )
    segments = np.ones((1, T), np.int32)
    windows = find_windows(np.arange(T)[None], segments, rate)
    seen = seen_entries(segments, np.arange(T), windows)
    scores = index_scores(q[None], np.float32(k)[None], w[None])
    ours = np.asarray(select(scores, seen, topk))[0]
    for t in range(T):
        assert set(np.flatnonzero(ours[t])) == set(np.asarray(exact)[t]) - {-1}
    assert (ours.sum(-1) < np.asarray(seen)[0].sum(-1)).any()
