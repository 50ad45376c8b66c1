"""What the kernels are called with on a TPU, read off the traced program: nothing is compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.extend.core import jaxprs_in_params

from deepseek_jax.ops.fp8 import BLOCK, COLUMN, ROW, quantize
from deepseek_jax.ops.pallas import attention, decoding, fp8, grouped_matmul, selected
from deepseek_jax.ops.saved_names import ATTENDED

E4M3 = "float8_e4m3fn"


def equations(jaxpr):
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def called(function, *arrays, **options):
    """(grid, FLOPs, bytes, transcendentals) of a function's only kernel. arrays: (shape, dtype)s."""
    arrays = [jax.ShapeDtypeStruct(*array) for array in arrays]
    program = jax.make_jaxpr(lambda *a: function(*a, **options))(*arrays)
    (call,) = (one.params for one in equations(program) if one.primitive.name == "pallas_call")
    assert not call["interpret"]
    cost = call["cost_estimate"]
    return call["grid_mapping"].grid, cost.flops, cost.bytes_accessed, cost.transcendentals


@pytest.mark.parametrize("tile", [ROW, COLUMN, BLOCK], ids=["row", "column", "block"])
def test_rounding_reads_each_number_once_and_writes_a_byte(tile):
    """Oracle: by hand: 384 rows in tiles of 256, the last in part; 1536 columns in three of 512; bfloat16."""
    cost = (2, 3), 0, 384 * 1536 * (2 + 1), 0
    with jax.default_device("tpu"):
        assert called(quantize, ((384, 1536), "bfloat16"), tile=tile) == cost
        assert called(quantize, ((3, 128, 1536), "bfloat16"), tile=tile) == cost


@pytest.mark.parametrize("k, n, steps", [(384, 640, (5, 3)), (2048, 1536, (3, 2))])
def test_a_product_in_fp8_costs_its_rows_its_terms_and_its_columns(k, n, steps):
    """Oracle: by hand: four tiles of 256 rows; columns in tiles of up to 1024 that divide them, terms in
    tiles of 1024 or 128; a byte for each operand's number and two for the result's.
    """
    r, g = 1024, 3
    left, right = (
        (((r, k), E4M3), ((r, k // 128), "float32")),
        (((g, k, n), E4M3), ((g, k // 128, n), "float32")),
    )

    def product(left, left_scale, right, right_scale, groups, tiles):
        pairs = (left, left_scale), (right, right_scale)
        return fp8.product(*pairs, group_of_tile=groups, tiles=tiles, out_dtype="bfloat16")

    tiles = ((4,), "int32"), ((), "int32")
    grid = steps[0], 4, steps[1]
    bytes_read = r * k + g * k * (n + -n % 128)
    assert called(product, *left, *right, *tiles) == (
        grid,
        2 * r * k * n,
        bytes_read + 2 * r * n,
        0,
    )


def test_a_product_over_rows_in_fp8_costs_the_same():
    """Oracle: by hand: tiles of 512 and 128 of the result, four of 256 rows; float32 results."""
    r, k, n, g = 1024, 1024, 640, 3

    def product(left, left_scale, right, right_scale, groups, tiles):
        pairs = (left, left_scale), (right, right_scale)
        return fp8.product_over_rows(*pairs, group_of_tile=groups, tiles=tiles, groups=g)

    arrays = [
        ((k, r), E4M3),
        ((k, r // 128), "float32"),
        ((r, n), E4M3),
        ((r // 128, n), "float32"),
    ]
    found = called(product, *arrays, ((4,), "int32"), ((), "int32"))
    assert found == ((2, 5, 4), 2 * r * k * n, r * k + r * n + 4 * k * n, 0)


@pytest.mark.parametrize("cache, blocks", [(2048, 2), (1536, 3), (1280, 5), (384, 3)])
def test_latent_decoding_reads_the_largest_blocks_that_divide_the_cache(cache, blocks):
    """Oracle: by hand: blocks of 1024, 512, 256 and 128; two products and an exponential for each cell."""
    b, h, c, r = 2, 16, 128, 64
    arrays = ((b, h, c + r), "bfloat16"), ((b, cache, c + r), "bfloat16"), ((b, cache), "bool")
    found = called(decoding.attend_latent, *arrays, kv_lora_rank=c, scale=1.0)
    flops = 2 * b * h * cache * (2 * c + r)
    assert found == ((b, blocks), flops, 2 * b * (h + cache) * (c + r), b * h * cache)


@pytest.mark.parametrize(
    "t, block, rows",
    [(100, 128, 128), (128, 128, 128), (200, 256, 256), (600, 512, 1024)]
    + [(8191, 512, 8192), (8192, 1024, 8192)],
)
def test_splash_attention_takes_larger_blocks_of_long_rows(monkeypatch, t, block, rows):
    """Oracle: by hand: whole lanes of short rows, else 512 or, from 8192 tokens on, 1024."""
    made = {}

    def make(mask, **options):
        made.update(options, mask=mask)
        return lambda q, k, v, ids: q

    monkeypatch.setattr(splash, "make_splash_mha", make)
    heads = [jax.ShapeDtypeStruct((1, t, 2, 64), "bfloat16")] * 3
    ids = jax.ShapeDtypeStruct((1, t), "int32")
    jax.eval_shape(lambda *a: attention.attend(*a, scale=1.0), *heads, ids)
    assert made["mask"].shape == (2, rows, rows) and not made["interpret"]
    assert made["block_sizes"].block_q == made["block_sizes"].block_kv_dkv_compute == block
    assert made["head_shards"] == made["q_seq_shards"] == 1
    assert made["residual_checkpoint_name"] == ATTENDED


def test_tiles_of_fp8_by_hand():
    """Oracle: by hand: rows are a power of two from 32 to 512; terms are the most of 1, 2, 4 and 8 blocks of
    128 that divide them; columns halve until they divide the whole lanes.
    """
    assert [fp8.dense_rows(m) for m in (1, 32, 33, 64, 512, 600)] == [32, 32, 64, 64, 512, 512]
    assert [fp8._terms(128 * n) for n in (1, 2, 3, 4, 6, 8, 16)] == [
        128,
        256,
        128,
        512,
        256,
        1024,
        1024,
    ]
    assert [fp8._columns(n, 512) for n in (100, 128, 256, 300, 512, 1536)] == [
        128,
        128,
        256,
        128,
        512,
        512,
    ]


def test_tiles_of_megablox_are_whole_lanes_and_fit_vector_memory():
    """Oracle: by hand: two copies of each operand's and of the result's tile, and one in float32, in 16 MiB;
    fewer rows and columns make a smaller tile; rows in tiles of 128 are cut into whole ones.
    """
    tiles = rows, terms, columns = grouped_matmul.TILES
    assert not (rows % 128 or terms % 128 or columns % 128)
    numbers = rows * terms + terms * columns + rows * columns
    assert 2 * numbers * jnp.dtype("bfloat16").itemsize + 4 * rows * columns < 2**24
    for sizes, wanted in (
        ((4096, 7168, 2048), tiles),
        ((640, 7168, 2048), (128, 1024, 1024)),
        ((384, 512, 2048), (384, 512, 1024)),
        ((200, 1024, 64), (200, 1024, 64)),
    ):
        assert grouped_matmul._fitting(tiles, sizes) == wanted


def test_narrow_matrices_and_heads_take_no_kernel():
    """Oracle: by hand: 64 columns are enough, 63 are not."""

    def zeros(*shape):
        return jnp.zeros(shape, jnp.bfloat16)

    for wide in (64, 63):
        assert grouped_matmul.takes(zeros(2, 64), 64, wide) == (wide == 64)
        assert grouped_matmul.takes(zeros(2, wide), wide, 64) == (wide == 64)
        assert attention.takes(zeros(1, 1, 1, 64), zeros(1, 1, 1, wide)) == (wide == 64)
        assert attention.takes(zeros(1, 1, 1, wide), zeros(1, 1, 1, 64)) == (wide == 64)


def test_no_kernel_multiplies_float32():
    """Oracle: by hand: arrays that a kernel takes in bfloat16."""
    for dtype in ("bfloat16", "float32"):
        fits = dtype == "bfloat16"
        rows, heads = jnp.zeros((2, 64), dtype), jnp.zeros((1, 1, 16, 128), dtype)
        queries, cache = jnp.zeros((1, 16, 128), dtype), jnp.zeros((1, 128, 128), dtype)
        assert grouped_matmul.takes(rows, 64, 64) == attention.takes(heads, heads) == fits
        assert decoding.takes(queries, cache, 128) == selected.takes(cache) == fits
