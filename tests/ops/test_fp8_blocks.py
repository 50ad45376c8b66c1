"""Weights in blocks, as checkpoints store them, against numpy loops and PyTorch's own float8."""

import jax.numpy as jnp
import numpy as np
import torch

from deepseek_jax.ops import fp8


def quantize(w):
    return fp8.quantize(w, fp8.BLOCK)


def dequantize(values, scale):
    return fp8.dequantize(values, scale, fp8.BLOCK)


def weights(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10 ** rng.uniform(-4, 2, shape)).astype(np.float32)


def blocks(shape):
    for i in range(0, shape[0], 128):
        for j in range(0, shape[1], 128):
            yield (i // 128, j // 128), (slice(i, i + 128), slice(j, j + 128))


def test_scales_are_the_blocks_largest_magnitude_over_448():
    """Oracle: a numpy loop over blocks, the last ones ragged. The compiler may divide off by an ulp."""
    w = weights((300, 130))
    _, scale = quantize(jnp.asarray(w))
    assert scale.shape == (3, 2)
    for at, block in blocks(w.shape):
        np.testing.assert_allclose(scale[at], np.abs(w[block]).max() / 448, rtol=2e-7)


def test_values_round_as_torch_rounds_to_e4m3():
    """Oracle: torch.float8_e4m3fn of the same quotient, bit for bit: subnormals and ties included."""
    w = weights((140, 200))
    values, scale = quantize(jnp.asarray(w))
    for at, block in blocks(w.shape):
        theirs = torch.tensor(w[block] / np.asarray(scale)[at]).clamp(-448, 448)
        theirs = theirs.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        np.testing.assert_array_equal(np.asarray(values)[block].view(np.uint8), theirs)


def test_dequantising_multiplies_by_the_block_scale():
    """Oracle: a numpy loop over blocks; one float32 product each, so exact."""
    values, _ = quantize(jnp.asarray(weights((200, 300))))
    scale = np.random.default_rng(1).uniform(0.1, 2, (2, 3)).astype(np.float32)
    out = np.asarray(dequantize(values, scale))
    for at, block in blocks(values.shape):
        exact = np.asarray(values)[block].astype(np.float32) * scale[at]
        np.testing.assert_array_equal(out[block], exact)


def test_a_block_of_zeros_has_scale_one():
    """Oracle: by hand; amax / 448 would be zero, and the quotient not a number."""
    values, scale = quantize(jnp.zeros((128, 256)).at[0, 200].set(-7.0))
    np.testing.assert_array_equal(scale, [[1.0, np.float32(7) / np.float32(448)]])
    assert not np.asarray(values)[:, :128].any() and float(values[0, 200]) == -448


def test_a_round_trip_errs_by_at_most_half_a_step():
    """Oracle: e4m3 keeps 4 significant bits (error 1/16) above its subnormals (448 / 2^18 of a block)."""
    w = weights((256, 256))
    values, scale = quantize(jnp.asarray(w))
    out = np.asarray(dequantize(values, scale))
    for at, block in blocks(w.shape):
        step = np.maximum(np.abs(w[block]) / 16, 2.0**-10 * np.asarray(scale)[at])
        assert (np.abs(out[block] - w[block]) <= 1.001 * step).all()
