"""Rotary tables against published figures, transformers and the definition."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek_jax.ops import rope

V3_YARN = dict(factor=40.0, original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0)
LLAMA31 = dict(
    factor=8.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
)


def hf_table(rope_type, dim, theta, **scaling):
    """(inv_freq, attention factor) as transformers makes them."""
    parameters = dict(rope_type=rope_type, rope_theta=theta, **scaling)
    config = transformers.LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_parameters=parameters
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    return inv_freq.numpy(), factor


def test_plain_frequencies_by_hand():
    """Oracle: 10000 ** (-2i / 8) for i of 0..3."""
    np.testing.assert_allclose(rope.rope_frequencies(8, 1e4), [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_yarn_leaves_fast_pairs_and_slows_slow_ones_by_the_factor():
    """Oracle: by hand for V3 (arXiv:2309.00071, section 3.2): the ramp runs from pair 10 to 23.

    pair(n) = 64 ln(4096 / (2 pi n)) / (2 ln 10000) is 10.47 at 32 turns and 22.51 at one.
    """
    plain = rope.rope_frequencies(64, 1e4)
    ratio = rope.yarn_frequencies(64, 1e4, **V3_YARN) / plain
    np.testing.assert_array_equal(ratio[:11], 1)
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-6)
    assert (np.diff(ratio[10:24]) < 0).all()
    ramp = (16 - 10) / (23 - 10)
    np.testing.assert_allclose(ratio[16], 1 - ramp + ramp / 40, rtol=1e-6)


SHORT_YARN = dict(factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=0.001)
STEP_YARN = SHORT_YARN | dict(original_max_position_embeddings=4, beta_slow=1.0)


@pytest.mark.parametrize(
    "dim, theta, yarn", [(64, 1e4, V3_YARN), (8, 10.0, SHORT_YARN), (8, 1e4, STEP_YARN)]
)
def test_yarn_is_the_table_of_transformers(dim, theta, yarn):
    """Oracle: transformers' ROPE_INIT_FUNCTIONS; 1e-6 is float32 rounding. A ramp that both ends of the pairs
    cut off, and one without a length.
    """
    theirs, factor = hf_table("yarn", dim, theta, **yarn)
    np.testing.assert_allclose(rope.yarn_frequencies(dim, theta, **yarn), theirs, rtol=1e-6)
    np.testing.assert_allclose(rope.yarn_mscale(yarn["factor"], 1.0), factor, rtol=1e-12)


def test_yarn_mscale_by_hand():
    """Oracle: 0.1 ln 40 + 1 = 1.3688879, and 1 where nothing is stretched."""
    assert rope.yarn_mscale(40.0, 1.0) == pytest.approx(1.3688879, abs=1e-7)
    assert rope.yarn_mscale(1.0, 1.0) == rope.yarn_mscale(0.5, 1.0) == 1.0
    assert rope.yarn_mscale(1.5, 2.0) == pytest.approx(1.0810930, abs=1e-7)


def test_llama3_frequencies_are_the_published_ones():
    """Oracle: by hand for Llama-3.1: pairs 0-28 kept, 29-34 blended by these ratios, 35-63 over 8."""
    ratio = rope.llama3_frequencies(128, 5e5, **LLAMA31) / rope.rope_frequencies(128, 5e5)
    np.testing.assert_array_equal(ratio[:29], 1)
    np.testing.assert_allclose(
        ratio[29:35], [0.8282, 0.6437, 0.4935, 0.3711, 0.2714, 0.1902], atol=5e-5
    )
    np.testing.assert_allclose(ratio[35:], 1 / 8, rtol=1e-6)


def test_llama3_frequencies_are_the_table_of_transformers():
    """Oracle: transformers' ROPE_INIT_FUNCTIONS.

    1e-5: where the blend is near its ends it is the small difference of large numbers.
    """
    theirs, factor = hf_table("llama3", 128, 5e5, **LLAMA31)
    np.testing.assert_allclose(rope.llama3_frequencies(128, 5e5, **LLAMA31), theirs, rtol=1e-5)
    assert factor == 1


def test_apply_rope_rotates_the_pair_i_and_i_plus_half():
    """Oracle: complex multiplication by e^(i position frequency) in numpy, amplitude included."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 300]])
    frequencies = rope.rope_frequencies(8, 100.0)
    cos, sin = rope.rope_tables(jnp.asarray(positions), frequencies, 1.5)
    turned = (
        (x[..., :4] + 1j * x[..., 4:])
        * 1.5
        * np.exp(1j * positions[..., None] * frequencies)[:, :, None]
    )
    ours = rope.apply_rope(jnp.asarray(x), cos, sin)
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], -1), atol=1e-4)


def test_scores_depend_on_the_distance_alone():
    """Oracle: invariant of RoPE: shifting both positions leaves q . k, to float32 rounding of angles."""
    rng = np.random.default_rng(1)
    q, k = jnp.asarray(rng.normal(size=(2, 1, 1, 16)), jnp.float32)
    frequencies = rope.rope_frequencies(16, 1e4)

    def score(at_q, at_k):
        turned = [
            rope.apply_rope(x, *rope.rope_tables(jnp.array([at]), frequencies))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(109, 104), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_apply_rope_keeps_the_dtype():
    """Oracle: bfloat16 in, bfloat16 out; nothing turns at position 0."""
    tables = rope.rope_tables(jnp.arange(3)[None], rope.rope_frequencies(4, 1e4))
    rotated = rope.apply_rope(jnp.ones((1, 3, 2, 4), jnp.bfloat16), *tables)
    assert rotated.dtype == jnp.bfloat16 and (rotated[0, 0] == 1).all()


def test_the_last_numbers_of_a_head_turn_as_complex_numbers_and_back():
    """Oracle: multiplication by e^(i angle), of pairs that are half the rotary width apart; the other numbers
    stay, and the opposite angle restores all.
    """
    x = np.random.default_rng(0).normal(size=(3, 2, 10)).astype(np.float32)
    positions = np.array([0, 5, 700])
    frequencies = rope.rope_frequencies(6, 1e4)
    cos, sin = rope.rope_tables(positions, frequencies)
    turned = np.asarray(rope.apply_rope_last(x, cos, sin))
    angles = positions[:, None, None] * frequencies.astype(np.float64)
    exact = (x[..., 4:7] + 1j * x[..., 7:]) * np.exp(1j * angles)
    # float32 angles up to 700 are off by up to 3e-5
    np.testing.assert_allclose(
        turned[..., 4:], np.concatenate([exact.real, exact.imag], -1), atol=1e-4
    )
    np.testing.assert_array_equal(turned[..., :4], x[..., :4])
    np.testing.assert_allclose(rope.apply_rope_last(turned, cos, -sin), x, atol=1e-6)
