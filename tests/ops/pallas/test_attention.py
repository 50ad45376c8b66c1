"""Splash attention against the plain form, and compiled for TPUs that are not there."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.attention import attend
from deepseek_jax.parallel.context import over_heads
from launch.planning.hlo import program_cost
from launch.planning.topology import planned_mesh
from tests import tpu
from tests.ops.test_attention import normal
from tests.quick import others_slow

SCALE = 0.1
# The widths of heads, key_heads, x and u that models have
WIDTHS = (2, 2, 192, 128), (8, 2, 128, 128), (9, 3, 64, 64)
ON_TPUS = list(itertools.product(tpu.TOPOLOGIES, WIDTHS))


def operands(t, heads, key_heads, x, u):
    """(q, k, v), and segment ids of packed documents, and of a row that is padded on both sides."""
    at = np.arange(t)
    ids = np.stack([1 + (at > t // 4) + (at > t // 2), (at > 3) & (at < t - 20)]).astype(np.int32)
    shapes = (2, t, heads, x), (2, t, key_heads, x), (2, t, key_heads, u)
    return [normal(i, *shape) for i, shape in enumerate(shapes)], ids


def results(implementation, arrays, segment_ids):
    """[outputs, gradients of q, k and v]"""
    probe = normal(9, *arrays[0].shape[:3], arrays[2].shape[-1])

    def loss(*arrays):
        form = dict(scale=SCALE, implementation=implementation)
        out = attend(*arrays, segment_ids=segment_ids, **form)
        return (out * probe).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [out, *grads]


@pytest.mark.parametrize(
    "t, heads, key_heads, x, u",
    [
        # MLA's widths and grouped queries, in a row shorter than a block; one of two blocks, the last padded
        pytest.param(200, 2, 2, 192, 128, id="mla"),
        pytest.param(160, 4, 2, 64, 64, id="gqa"),
        pytest.param(700, 1, 1, 64, 64, id="two blocks", marks=pytest.mark.slow),
    ],
)
def test_splash_attention_is_the_plain_one(t, heads, key_heads, x, u):
    """Oracle: the plain form and autodiff through it; rounding of float32 sums in another order."""
    arrays, ids = operands(t, heads, key_heads, x, u)
    for ours, wanted in zip(
        results("interpreted", arrays, ids), results("whole", arrays, ids), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=5e-6 * np.abs(wanted).max())


@pytest.fixture
def compiled():
    """A function that compiles the gradient of a bfloat16 row a device: -> (the program's text, its mesh)."""

    def compile_rows(topology, t, heads, key_heads, x, u, context=1):
        mesh, _ = planned_mesh(topology, dict(data=-1, context=context))
        places = jax.NamedSharding(mesh, jax.P("data", "context"))

        def loss(q, k, v, ids):
            out = over_heads(functools.partial(attend, scale=SCALE), q, k, v, ids)
            return out.astype(jnp.float32).sum()

        def shape(*size, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct((mesh.shape["data"], t, *size), dtype, sharding=places)

        arguments = shape(heads, x), shape(key_heads, x), shape(key_heads, u), shape(dtype="int32")
        with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
            traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arguments)
            return traced.lower(lowering_platforms=("tpu",)).compile().as_text(), mesh

    with tpu.compiling():
        yield compile_rows


@pytest.mark.parametrize("topology, widths", others_slow(ON_TPUS, ON_TPUS[0]))
def test_long_rows_on_a_tpu_take_the_kernel(compiled, topology, widths):
    """Oracle: the compiled program: three kernels, no array with a score for each pair of tokens, and, as the
    walker counts it, 2 products forward and 7 backward over half of the square.
    """
    t, (heads, key_heads, x, u) = 4096, widths
    text, mesh = compiled(topology, t, heads, key_heads, x, u)
    for phase in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{phase}" in text
    assert f"{t},{t}]" not in text
    flops = sum(program_cost(text, mesh.shape).flops.values())
    of_widths = (x + u) + (2 * x + u) + (2 * x + 2 * u)
    assert flops == pytest.approx(heads * t * t * of_widths, rel=0.01)


@pytest.mark.slow
def test_rows_split_by_token_take_the_kernel_by_head(compiled):
    """Oracle: the program for four chips: a kernel, and one exchange for q, k, v and the output, and for the
    gradient of each.
    """
    text, mesh = compiled("v5p:2x2x1", 4096, 8, 8, 192, 128, context=4)
    moved = program_cost(text, mesh.shape).collectives
    assert "splash_mha_fwd" in text and moved["all-to-all", ("context",)].count <= 8


@pytest.mark.slow
def test_narrow_heads_keep_the_plain_form(compiled):
    """Oracle: the compiled program."""
    text, _ = compiled("v5p:2x2x1", 2048, 4, 4, 24, 16)
    assert "splash" not in text
