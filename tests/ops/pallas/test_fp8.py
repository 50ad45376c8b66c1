"""The kernels of FP8 compiled for TPUs that are not there; tests/ops/test_fp8.py has their numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.costs.chips import DEVICES
from deepseek_jax.models import forward, init_params
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.fp8_grouped import expert_block, grouped_fp8
from deepseek_jax.ops.platform import form_of
from launch.planning.hlo import program_cost
from launch.planning.roofline import roofline
from launch.planning.topology import planned_mesh
from tests.quick import others_slow
from tests.tiny import MLA_MOE
from tests.tpu import TOPOLOGIES, compiled, compiling

FP8 = "f8e4m3fn x f8e4m3fn"


def sizes(small, whole):
    """(topology, sizes) for parametrize: by default small ones, which compile in half the time."""
    quick = TOPOLOGIES[0], small
    return others_slow([quick, *((topology, whole) for topology in TOPOLOGIES)], quick)


@pytest.fixture(autouse=True)
def for_tpus():
    with compiling():
        yield


def gradients(product, x, w, dy):
    out, pullback = jax.vjp(product, x, w)
    return out, *pullback(dy)


@pytest.mark.parametrize("topology, sizes", sizes((1024, 1024, 512), (4096, 7168, 2048)))
def test_a_linear_layer_multiplies_e4m3_values(topology, sizes):
    """Oracle: the program: three products of 2 m k n FLOPs, all by the kernel; four roundings of 1 x 128 and
    128 x 1 tiles and two of the weights; no product of float32, and no second copy of the weights in float32.
    """
    m, k, n = sizes
    product = functools.partial(gradients, functools.partial(fp8_dot, "md,df->mf"))
    shapes = ((m, k), "bfloat16"), ((k, n), "float32"), ((m, n), "bfloat16")
    text = compiled(topology, product, *shapes).as_text()
    cost = program_cost(text, {})
    assert {label: flops for label, flops in cost.flops.items() if flops} == {
        FP8: 3 * 2 * m * k * n
    }
    assert text.count('custom_call_target="tpu_custom_call"') == 3 + 4 + 2
    # Each operand read and written in a few bytes: x and dy twice, w twice, and once again in E4M3
    assert cost.hbm_bytes < 30 * (m * k + m * n + k * n)


@pytest.mark.slow
@pytest.mark.parametrize("topology, sizes", sizes((1024, 1024, 512, 2), (8192, 7168, 4096, 8)))
def test_experts_multiply_e4m3_values(topology, sizes):
    """Oracle: the program: three products of all rows with one expert's matrix each."""
    r, k, n, e = sizes
    block = 256

    def product(rows, kernel, dy, counts):
        form = functools.partial(
            grouped_fp8, rows_per_expert=counts, block=block, power_of_two=True, num_parts=2
        )
        return gradients(form, rows, kernel, dy)

    shapes = ((r, k), "bfloat16"), ((e, k, n), "float32"), ((r, n), "bfloat16"), ((e,), "int32")
    cost = program_cost(compiled(topology, product, *shapes).as_text(), {})
    flops = {label: flops for label, flops in cost.flops.items() if flops}
    assert flops == {f"grouped matmul, {FP8}": 3 * 2 * r * k * n}


@pytest.mark.slow
def test_fp8_takes_half_the_time_where_a_chip_multiplies_it():
    """Oracle: the chips' peaks, of what the kernels' label says: 4614 and 2307 TFLOP/s of a tpu7x; a v5p has
    one for both.
    """
    m, k, n = 4096, 7168, 2048
    product = functools.partial(fp8_dot, "md,df->mf")
    shapes = ((m, k), "bfloat16"), ((k, n), "float32")
    cost = program_cost(compiled("v5p:2x2x1", product, *shapes).as_text(), {})
    mesh, _ = planned_mesh("v5p:2x2x1", dict(data=-1))
    for kind, factor in (("TPU v5", 1), ("TPU7x", 2)):
        chip = DEVICES[kind]
        seconds = roofline(cost, chip, mesh).products
        assert seconds == pytest.approx(2 * m * k * n / (factor * chip.flops_per_second))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(data=1, fsdp=2, expert=2), dict(data=1, tensor=4)])
def test_a_model_on_several_devices_takes_the_kernels(sizes):
    """Oracle: the program: the kernels of Linear layers, of experts, and of experts' gradients."""
    mesh, _ = planned_mesh("v5p:2x2x1", sizes)
    config = ModelConfig(**MLA_MOE, fp8=True, dtype="bfloat16", scan_layers=True)
    params = jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0))))
    everywhere = jax.NamedSharding(mesh, jax.P())

    def loss(params, tokens):
        return forward(config, params, tokens).astype(jnp.float32).sum()

    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), params
    )
    tokens = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=everywhere)
    with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
        traced = jax.jit(jax.grad(loss)).trace(described, tokens)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    for kernel in ("fp8_product", "fp8_gmm", "fp8_tgmm"):
        assert kernel in text


def test_experts_rows_fill_whole_tiles_on_a_tpu():
    """Oracle: by hand: a tile of 256 rows on a TPU, elsewhere blocks of 8 as without FP8."""
    assert expert_block(1000, 8) == 8
    with jax.default_device("tpu"):
        assert expert_block(1000, 8) == expert_block(10**6, 8) == 256


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_values_are_multiplied_as_the_chip_can(topology):
    """Oracle: the chips' peaks: of these, tpu7x alone multiplies E4M3 faster than bfloat16."""
    mesh, chip = planned_mesh(topology, dict(data=-1))
    with jax.default_device(mesh.devices.flat[0]):
        native = form_of("fp8_operands") == "float8_e4m3fn"
    assert native == ("f8e4m3fn" in chip.peaks)


@pytest.mark.parametrize("m, k", [(1, 300), (8, 300), (96, 1300), (300, 300), (600, 300)])
def test_any_number_of_rows_has_tiles_that_a_tpu_takes(m, k):
    """Oracle: Mosaic's own checks, as it lowers the product and its gradients for a TPU: blocks of whole
    registers. 300, 1300 and 140 are no multiples of 128, and 1300 has more scales than a register has rows.
    """
    product = functools.partial(gradients, functools.partial(fp8_dot, "md,df->mf"))
    arrays = [jax.ShapeDtypeStruct(s, "float32") for s in ((m, k), (k, 140), (m, 140))]
    mesh, _ = planned_mesh("v5e:1x1", dict(data=-1))
    with jax.default_device(mesh.devices.flat[0]):
        lowered = jax.jit(product).trace(*arrays).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
