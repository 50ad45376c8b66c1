"""FP4: every byte by hand, ml_dtypes as a second witness, and rounding with new scales."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from deepseek_jax.ops import fp4

BYTES = np.arange(256, dtype=np.uint8)
# By hand: sign, two bits of exponent, one of mantissa; the lowest exponent has no leading one
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def bits(array):
    """float32 as integers, so that -0.0 is not 0.0."""
    return np.asarray(array, np.float32).view(np.uint32)


def test_every_byte_is_two_numbers_of_which_the_low_half_is_the_even_column():
    """Oracle: the 256 pairs by hand, to the sign of zero; ml_dtypes' e2m1."""
    ours = fp4.dequantize(BYTES.view(np.int8).reshape(4, 64), np.ones((4, 4), np.float32))
    by_hand = [[E2M1[byte % 16], E2M1[byte // 16]] for byte in range(256)]
    np.testing.assert_array_equal(bits(ours).ravel(), bits(by_hand).ravel())
    halves = np.stack([BYTES & 15, BYTES >> 4], axis=-1).view(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(bits(ours).ravel(), bits(halves.astype(np.float32)).ravel())


def test_a_scale_is_for_32_columns_of_a_row_and_bfloat16_loses_nothing():
    """Oracle: a loop over tiles, for 80 columns: the last tile is cut off."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (3, 40), dtype=np.int8)
    scale = np.exp2(rng.integers(-20, 20, (3, 3))).astype(np.float32)
    wanted = np.array(
        [[E2M1[b % 16], E2M1[b // 16]] for b in codes.view(np.uint8).ravel()], np.float32
    )
    wanted = wanted.reshape(3, 80)
    for i, j in np.ndindex(3, 3):
        wanted[i, 32 * j : 32 * j + 32] *= scale[i, j]
    ours = jax.jit(fp4.dequantize)(codes, scale)
    np.testing.assert_array_equal(bits(ours), bits(wanted))
    np.testing.assert_array_equal(bits(ours.astype(jnp.bfloat16).astype(jnp.float32)), bits(wanted))


def test_numbers_round_to_the_nearest_code_and_ties_to_the_even_one():
    """Oracle: ml_dtypes' rounding, of every eighth up to 6 and either sign, which has all ties."""
    eighths = np.arange(-48, 76).clip(max=48).reshape(4, 31) / 8
    # A 6 in each tile, so that all scales are 1
    x = np.concatenate([eighths, np.full((4, 1), 6)], axis=1).astype(np.float32)
    codes, scale = jax.jit(fp4.quantize)(x)
    np.testing.assert_array_equal(scale, np.ones((4, 1)))
    wanted = x.astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(
        bits(fp4.dequantize(codes, scale)), bits(wanted.astype(np.float32))
    )
    halves = wanted.view(np.uint8).reshape(4, -1, 2)
    np.testing.assert_array_equal(
        np.asarray(codes).view(np.uint8), halves[..., 0] | halves[..., 1] << 4
    )


def test_a_new_scale_is_the_least_power_of_two_at_which_a_tile_fits():
    """Oracle: a loop over tiles: 2^ceil(log2(max / 6)), 1 for zeros; then ml_dtypes' rounding."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5, 80)) * np.exp2(rng.integers(-30, 30, (5, 1)))).astype(np.float32)
    x[3] = 0.0
    # 6 times a power of two needs no larger scale, and the next number does
    x[4, :64] = [6 * 2.0**-4] * 32 + [np.nextafter(np.float32(6 * 2.0**-4), np.float32(1))] * 32
    codes, scale = fp4.quantize(x)
    assert np.asarray(scale)[4, :2].tolist() == [2.0**-4, 2.0**-3]
    for i, j in np.ndindex(5, 3):
        tile = x[i, 32 * j : 32 * j + 32]
        largest = np.abs(tile).max()
        wanted = 2.0 ** np.ceil(np.log2(np.float64(largest) / 6)) if largest else 1.0
        assert scale[i, j] == wanted
        rounded = (tile / wanted).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * wanted
        ours = fp4.dequantize(codes, scale)[i, 32 * j : 32 * j + 32]
        np.testing.assert_array_equal(bits(ours), bits(rounded))
