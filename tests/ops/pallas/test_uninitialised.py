"""Each kernel in the interpreter that has a TPU core's memories: what was never written is NaN, and races are
found (jax.experimental.pallas.tpu.InterpretParams).

It calls back to Python, an effect that neither remat nor a loop's gradient takes, so that whole models run in
the plain interpreter (`--rehearse`). It knows no time, no limit of memory and no layout that the compiler
would refuse: those, tests/ops/pallas compiles for.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from deepseek_jax.ops import attention as plain
from deepseek_jax.ops import fp8 as numbers
from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.fp8_blocks import Blocks, block_product
from deepseek_jax.ops.pallas import attention, decoding, fp8
from deepseek_jax.ops.pallas import grouped_matmul as megablox
from deepseek_jax.parallel import make_mesh
from tests.ops.test_attention import normal
from tests.quick import others_slow

STRICT = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
MASK = np.random.default_rng(5).random((2, 256)) < 0.5
# The last row of each expert lies within a tile; a row after them belongs to none
COUNTS = jnp.array([100, 0, 155])


def bfloat16(*shapes):
    return [jnp.asarray(normal(i, *shape), jnp.bfloat16) for i, shape in enumerate(shapes)]


def latents():
    arrays = bfloat16((2, 16, 192), (2, 256, 192))
    how = dict(kv_lora_rank=128, scale=0.1, mask=MASK)
    ours = decoding.attend_latent(*arrays, MASK, 128, 0.1, interpret=STRICT)
    return ours, plain.attend_latent(*arrays, **how, implementation="plain")


def by_expert():
    arrays = *bfloat16((256, 128), (3, 128, 128)), COUNTS
    ours = megablox.product(*arrays, interpret=STRICT)
    return ours[:255], grouped.grouped_matmul(*arrays, implementation="ragged")[:255]


def by_expert_transposed():
    rows, kernel = bfloat16((256, 128), (3, 128, 128))
    ours = megablox.product(rows, kernel, COUNTS, transposed=True, interpret=STRICT)
    return ours[:255], grouped._ragged(rows, kernel, COUNTS, transposed=True)[:255]


def over_rows():
    arrays = *bfloat16((256, 128), (256, 128)), COUNTS
    ours = megablox.product_over_rows(*arrays, "float32", interpret=STRICT)
    # Nothing is written for an expert without rows
    wanted = grouped.product_over_rows(*arrays, implementation="ragged")
    return ours[::2], wanted[::2]


def attended(implementation):
    def form(q, k, v):
        ids = jnp.repeat(jnp.array([[1, 2]]), 128, axis=1)
        if implementation == "kernel":
            return attention.attend(q, k, v, ids, 0.1, interpret=STRICT)
        how = dict(scale=0.1, segment_ids=ids, implementation=implementation)
        return plain.attend(q, k, v, **how)

    return form


def splash():
    arrays = bfloat16(*[(1, 256, 2, 128)] * 3)
    return attended("kernel")(*arrays), attended("whole")(*arrays)


def splash_gradients():
    arrays = bfloat16(*[(1, 256, 2, 128)] * 3)

    def gradients(form):
        return jax.grad(lambda *a: form(*a).astype(jnp.float32).sum(), (0, 1, 2))(*arrays)

    return gradients(attended("kernel")), gradients(attended("whole"))


def rounded(tile):
    (x,) = bfloat16((256, 256))
    of_amax = functools.partial(numbers.tile_scale, power_of_two=False)
    ours = fp8.quantize(x, tile, of_amax, interpret=STRICT)
    return ours, numbers.quantize(x, tile, implementation="plain")


def blocks():
    left, right = bfloat16((1, 256, 256), (1, 256, 128))
    operands = (
        Blocks(*numbers.quantize(left, numbers.ROW, implementation="plain")),
        Blocks(*numbers.quantize(right, numbers.COLUMN, implementation="plain")),
    )
    (left, left_scale), (right, right_scale) = operands
    ours = fp8.product(
        (left[0], left_scale[0]),
        (right, right_scale),
        group_of_tile=jnp.zeros(1, jnp.int32),
        tiles=1,
        interpret=STRICT,
    )
    return ours, block_product(*operands, implementation="dequantized")[0]


def blocks_over_rows():
    left, right = bfloat16((128, 256), (256, 128))
    left = numbers.quantize(left, numbers.ROW, implementation="plain")
    right = numbers.quantize(right, numbers.COLUMN, implementation="plain")
    ours = fp8.product_over_rows(
        left, right, group_of_tile=jnp.zeros(1, jnp.int32), tiles=1, groups=1, interpret=STRICT
    )
    operands = (Blocks(*(x[None] for x in pair)) for pair in (left, right))
    return ours, block_product(*operands, implementation="dequantized")


def over_devices():
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    arrays, spec = (*bfloat16((2, 16, 192), (2, 256, 192)), MASK), PartitionSpec("data")

    def local(q, cache, mask):
        return decoding.attend_latent(q, cache, mask, 128, 0.1, interpret=STRICT)

    split = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return jax.jit(split)(*arrays), latents()[1]


CASES = {
    "latent decoding": latents,
    "megablox": by_expert,
    "megablox, transposed": by_expert_transposed,
    "megablox over rows": over_rows,
    "splash": splash,
    "gradients of splash": splash_gradients,
    "fp8 rows": functools.partial(rounded, numbers.ROW),
    "fp8 columns": functools.partial(rounded, numbers.COLUMN),
    "fp8 blocks": functools.partial(rounded, numbers.BLOCK),
    "fp8 product": blocks,
    "fp8 product over rows": blocks_over_rows,
    "latent decoding over devices": over_devices,
}


@pytest.mark.parametrize("case", others_slow(CASES, "fp8 rows", "splash", "latent decoding"))
def test_a_kernel_reads_nothing_that_was_not_written(case):
    """Oracle: the plain form; the interpreter's own search for races."""
    ours, wanted = CASES[case]()
    jax.block_until_ready(ours)
    for found, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        found, right = (np.asarray(x.astype(jnp.float32)) for x in (found, right))
        np.testing.assert_allclose(found, right, atol=0.02 * np.abs(right).max())
    assert not interpret_pallas_call.races.races_found


def test_the_interpreter_shows_what_was_not_written():
    """Oracle: the last row, which no expert has, so that the kernel does not write it."""
    out = megablox.product(*bfloat16((256, 128), (3, 128, 128)), COUNTS, interpret=STRICT)
    assert np.isnan(out[255:].astype(jnp.float32)).all()
