"""Writing a token into the decoding caches, and how large these are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.models.cache import CacheWrite, empty_cache, in_order, slots_in_order
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.v4.cache import empty_caches
from deepseek_jax.models.v4.config import parse_config
from tests.models.v4.test_config import FLASH


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_write_changes_one_index_and_no_bit_elsewhere(dtype):
    """Oracle: a numpy assignment; NaN, infinity and a subnormal keep their bits."""
    rng = np.random.default_rng(0)
    cache, entry = (rng.normal(size=shape).astype(dtype) for shape in ((6, 5, 3), (6, 1, 3)))
    cache.flat[:3] = [np.nan, np.inf, 1e-39]
    expected = cache.copy()
    expected[:, 3:4] = entry
    write = CacheWrite(jnp.int32(3), jnp.ones((2, 5), bool))
    written = np.asarray(write(jnp.asarray(cache), jnp.asarray(entry)))
    np.testing.assert_array_equal(written.view(np.uint8), expected.view(np.uint8))


def test_slots_of_a_ring_are_ordered_by_position():
    """Oracle: by hand: two slots of prompts, a ring of four whose newest entry is in slot 3."""
    slots = jnp.arange(6)[None]
    ordered = in_order(slots, 2, jnp.int32(3))
    np.testing.assert_array_equal(ordered[0], [0, 1, 4, 5, 2, 3])
    back = slots_in_order(jnp.arange(6)[None], 6, 2, jnp.int32(3))
    np.testing.assert_array_equal(back, ordered)


def caches_of(name):
    """A function of a length: the caches of one text, of all layers of a published config."""
    if name == "DeepSeek-V4-Flash":
        return lambda length: empty_caches(parse_config(FLASH), 1, length, jnp.bfloat16)
    fields = {"DeepSeek-V3": models.deepseek_v3, "DeepSeek-V3.2": models.deepseek_v3_2}[name]()
    config = ModelConfig(**fields)
    layers = range(config.num_hidden_layers)
    return lambda length: [empty_cache(config, 1, length, jnp.bfloat16) for _ in layers]


@pytest.mark.parametrize(
    ("name", "growing"),
    [
        ("DeepSeek-V3", 61 * (512 + 64)),
        ("DeepSeek-V3.2", 61 * (512 + 64 + 128)),
        ("DeepSeek-V4-Flash", 21 * (512 + 128) // 4 + 20 * 512 // 128),
    ],
)
def test_a_cache_has_the_numbers_of_the_guides_table(name, growing):
    """Oracle: by hand, layers times their sizes in the papers; the compiler's count of bytes; and the table
    of deepseek_jax/README.md.
    """
    make, length = caches_of(name), 131_072

    def numbers(length):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: make(length))))

    assert numbers(2 * length) - numbers(length) == length * growing
    constant = numbers(length) - length * growing
    leaves = jax.tree.leaves(jax.eval_shape(lambda: make(length)))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    compiled = jax.jit(lambda: make(length)).lower().compile().memory_analysis()
    # The compiler adds a pointer to each array
    assert compiled.output_size_in_bytes == size + 8 * len(leaves)
    guide = Path(__file__).parents[2] / "deepseek_jax" / "README.md"
    row = f"| {name} | {growing:,} | {constant:,} | {size / 2**30:.2f} |"
    assert row in guide.read_text().splitlines(), row
