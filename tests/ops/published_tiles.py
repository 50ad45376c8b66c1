"""One op in the form of a TPU, emulated, at the tiles of a published config: prints how far it is from the
plain form, relative to its largest number.

python -m tests.ops.published_tiles "attend, 4,096 tokens"

One layer of DeepSeek-V3, with few rows, heads and experts, and in full what the tiles of a kernel cut: tokens
of a row, hidden_size, columns, heads and keys of a cache. A program of its own, because tests compile without
XLA's optimisations, with which these products take a tenth of the time.
"""

import functools
import sys

import jax
import jax.numpy as jnp

from deepseek_jax.ops import fp8
from deepseek_jax.ops.attention import attend, attend_latent
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.fp8_grouped import grouped_fp8
from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.platform import plain_forms, taken
from deepseek_jax.ops.rehearsal import rehearse
from launch.machine_checks import Case, apart, several

MACHINE = "v5p"
# hidden_size, kv_lora_rank and its rotary part, and a head's queries and values
D, LATENT, RANK, QUERY, VALUE = 7168, 576, 512, 192, 128


def rows_of(tokens, learns=True):
    """Attention over two documents of a row."""
    ids = (1 + (jnp.arange(tokens) >= tokens // 3)).astype(jnp.int32)[None]
    arrays = several(
        jnp.bfloat16, (1, tokens, 1, QUERY), (1, tokens, 1, QUERY), (1, tokens, 1, VALUE)
    )
    return Case("attend", lambda *a: attend(*a, scale=0.07, segment_ids=ids), arrays, learns)


def decoding(keys):
    """A token's attention over a cache, the last keys of which are masked."""
    mask = jnp.arange(keys)[None] < keys - 3
    attended = functools.partial(attend_latent, kv_lora_rank=RANK, scale=0.07, mask=mask)
    arrays = several(jnp.bfloat16, (1, 128, LATENT), (1, keys, LATENT))
    return Case("attend_latent", attended, arrays)


def experts(rows, d, f, *counts):
    """Experts' products, whose rows end within tiles. What follows the last expert's rows may be anything, in
    results and gradients, and is not compared.
    """
    arrays, counts = several(jnp.bfloat16, (rows, d), (len(counts), d, f)), jnp.array(counts)
    own = (jnp.arange(rows) < counts.sum())[:, None]

    def product(rows_rd, kernel_edf):
        rows_rd = jnp.where(own, rows_rd, 0)
        return jnp.where(own, grouped_matmul(rows_rd, kernel_edf, counts), 0)

    return Case("grouped_matmul", product, arrays, True)


def fp8_experts(d, f):
    """Experts' products of FP8 blocks, in whole tiles of 256 rows."""
    arrays, counts = several(jnp.bfloat16, (768, d), (3, d, f)), jnp.array([256, 0, 512])
    return Case("grouped_fp8", lambda *a: grouped_fp8(*a, counts, block=256), arrays, True)


def fp8_rows(rows, f):
    """A linear layer in FP8."""
    arrays = several(jnp.bfloat16, (rows, D), (D, f))
    return Case("block_product", functools.partial(fp8_dot, "md,df->mf"), arrays, True)


def quantized(rows):
    """Rows in FP8, as numbers again."""
    return Case(
        "quantize",
        lambda x: fp8.dequantize(*fp8.quantize(x, fp8.ROW), fp8.ROW),
        several(jnp.bfloat16, (rows, D)),
    )


CASES = {
    "attend, 4,096 tokens": lambda: rows_of(4096),
    "attend, 4,095 tokens": lambda: rows_of(4095),
    "attend, 4,097 tokens": lambda: rows_of(4097),
    # From here on, blocks of 1024
    "attend, 8,192 tokens": lambda: rows_of(8192, learns=False),
    "attend, 8,193 tokens": lambda: rows_of(8193, learns=False),
    # The caches of configs/r1.py: blocks of 1024 keys, and of 128
    "attend_latent, 34,816 keys": lambda: decoding(34_816),
    "attend_latent, 34,688 keys": lambda: decoding(34_688),
    "grouped_matmul, whole tiles": lambda: experts(512, D, 1024, 300, 0, 212),
    "grouped_matmul, a column more": lambda: experts(512, D, 1025, 300, 0, 212),
    "grouped_matmul, parts of tiles": lambda: experts(640, D - 64, 1024 + 64, 129, 384, 100),
    "grouped_fp8, whole tiles": lambda: fp8_experts(D, 1024),
    "grouped_fp8, parts of tiles": lambda: fp8_experts(1024 - 128, 1024 + 128),
    "block_product, 256 rows": lambda: fp8_rows(256, 1024),
    "block_product, 257 rows": lambda: fp8_rows(257, 1024 + 128),
    "quantize, 512 rows": lambda: quantized(512),
    "quantize, 513 rows": lambda: quantized(513),
}


def main(name):
    rehearse(MACHINE)
    case = CASES[name]()
    own = case.computed()
    forms = {form for op, form in taken if op == case.op}
    with plain_forms():
        plain = case.computed()
    off = max(map(apart, jax.tree.leaves(own), jax.tree.leaves(plain)))
    print(f"{case.op} as {'/'.join(sorted(forms))} is off by {off:.2e}")


if __name__ == "__main__":
    main(sys.argv[1])
