"""The kernel of latent decoding against the plain form, and compiled for TPUs that are not there."""

import numpy as np
import pytest

from deepseek_jax.ops.attention import attend_latent
from launch.planning.hlo import program_cost
from tests.ops.test_attention import normal
from tests.quick import others_slow
from tests.tpu import TOPOLOGIES, compiled

B, H, S, C, R = 3, 16, 384, 128, 64


def operands(scale=1.0):
    shapes = (B, H, C + R), (B, S, C + R)
    arrays = [scale * normal(i, *shape) for i, shape in enumerate(shapes)]
    # A ring: what a slot sees is its prompt, and some of the rest; one slot sees a single token
    mask = np.random.default_rng(5).random((B, S)) < 0.5
    mask[1] = np.arange(S) == 300
    return arrays, mask


@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_the_kernel_is_the_plain_form(spread):
    """Oracle: the plain form, also where scores are thousands apart: rounding of float32 sums."""
    arrays, mask = operands(spread)
    ours, plain = (
        attend_latent(*arrays, kv_lora_rank=C, scale=0.1, mask=mask, implementation=form)
        for form in ("interpreted", "plain")
    )
    np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())


def test_a_cache_of_no_whole_blocks_is_refused():
    """Oracle: the message: the argument, what is allowed."""
    (queries, latents), mask = operands()
    short = dict(mask=mask[:, :100], kv_lora_rank=C, scale=0.1)
    with pytest.raises(ValueError, match="blocks of 128 tokens, and the cache has 100; .*: plain"):
        attend_latent(queries, latents[:, :100], **short, implementation="interpreted")


@pytest.mark.parametrize("topology", others_slow(TOPOLOGIES, TOPOLOGIES[0]))
def test_decoding_on_a_tpu_writes_no_scores(topology):
    """Oracle: the compiled program of V3's attention: no float32 array of heads by cache; it reads the cache
    once, and its products are counted by hand.
    """
    b, h, s, c, r = 2, 128, 4096, 512, 64

    def attend(*arrays):
        return attend_latent(*arrays[:-1], kv_lora_rank=c, scale=0.1, mask=arrays[-1])

    shapes = ((b, h, c + r), "bfloat16"), ((b, s, c + r), "bfloat16"), ((b, s), "bool")
    text = compiled(topology, attend, *shapes).as_text()
    assert "latent_decoding" in text and f"f32[{b},{h},{s}]" not in text
    cost = program_cost(text, {"data": 1})
    assert sum(cost.flops.values()) == 2 * b * h * s * (2 * c + r)
    # The mask too, as int32
    assert cost.hbm_bytes < 1.1 * (2 * b * s * (c + r) + 2 * b * h * (2 * c + r) + 12 * b * s)
