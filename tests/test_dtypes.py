"""The table of dtypes of deepseek_jax/README.md, and what it is made of."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.models import abstract_init
from deepseek_jax.models.reward import RewardHead
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.low_rank import low_rank
from deepseek_jax.parallel.mesh import make_mesh
from launch.config_file import load_config
from launch.planning.topology import ENVIRONMENT, planned_mesh, recipes_programs
from tests.benchmarks import dtypes
from tests.benchmarks.traced import (
    PRODUCTS,
    array,
    computed,
    equations,
    gradients,
    products,
    products_among,
    stored,
    traced,
)


def test_the_table_is_that_of_the_code(monkeypatch):
    """Oracle: the table, written anew by its command."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    dtypes.main(["--check"])


def test_products_are_read_within_loops_conditions_and_derivatives():
    """Oracle: by hand: a loop with a product of float32, a branch with an exact one, and dot's gradients."""
    x, w = array(4, 8), array(8, 8, dtype="float32")

    def inner(x, w):
        looped = jax.lax.fori_loop(0, 3, lambda i, a: a @ w, x.astype(jnp.float32))
        exact = jnp.matmul(looped, w, precision="highest")
        return jax.lax.cond(looped[0, 0] > 0, lambda: exact, lambda: jnp.exp(looped))

    found = "float32 → float32, float32 (exact) → float32"
    assert products(inner, x, w) == found and computed("exp", inner, x, w) == "float32"

    def linear(x, w):
        return dot("md,df->mf", x, w)

    assert products(linear, x, w) == products(gradients(linear), x, w) == "bfloat16 → float32"
    assert products_among(traced(linear, x, w), width=9) == ""


def test_arrays_of_a_rarer_dtype_are_named():
    """Oracle: by hand; integers do not count."""
    tree = {
        "a": array(1),
        "b": array(2),
        "c": array(1, dtype="float32"),
        "d": array(1, dtype="int32"),
    }
    assert stored(tree) == "bfloat16, float32 (c)" and stored([array(1), array(1)]) == "bfloat16"


def test_in_float32_all_that_reads_the_config_is_float32(monkeypatch):
    """Oracle: the guide's words above the table."""
    monkeypatch.setattr(dtypes, "CONFIG", dataclasses.replace(dtypes.CONFIG, dtype="float32"))
    params = nn.unbox(abstract_init(dtypes.CONFIG))
    cells = dtypes.in_training(params) | dtypes.in_a_rollout(params)
    for part in ("residual stream", "weights in a rollout", "cache"):
        assert cells[part] == "float32"
    assert cells["router"] == cells["logits"] == "float32 (exact) → float32"


def test_adapters_and_rewards_round_no_operand():
    """Oracle: by hand: one product each, of float32 weights; a reward's hidden states may be bfloat16."""
    a, b = array(64, 8, dtype="float32"), array(8, 64, dtype="float32")
    head = RewardHead(dtypes.CONFIG)
    params = jax.eval_shape(head.init, jax.random.key(0), array(1, dtypes.D))
    assert products(low_rank, a, b) == "float32 (exact) → float32"
    assert products(head.apply, params, array(4, dtypes.D)) == "float32 (exact) → float32"


EVERYTHING = pytest.mark.slow(reason="one TPU's programs of each kind run by default")


@pytest.mark.parametrize(
    "config, kind",
    [
        ("grpo_small", "tpu"),
        pytest.param("v32_grpo_small", "tpu", marks=EVERYTHING),
        pytest.param("grpo_lora:model=smollm2", "tpu", marks=EVERYTHING),
        pytest.param("reward_model_small", "tpu", marks=EVERYTHING),
        pytest.param("distill_small", "tpu", marks=EVERYTHING),
        pytest.param("r1_small", "tpu", marks=EVERYTHING),
        pytest.param("grpo_small", "gpu", marks=EVERYTHING),
        pytest.param("v32_grpo_small", "gpu", marks=EVERYTHING),
    ],
)
def test_a_run_in_float32_rounds_no_operand(monkeypatch, config, kind):
    """Oracle: the equations of all programs of the run, as traced for a machine whose default precision of
    float32 products is that of bfloat16 (a TPU), or of 10 bits (a GPU). Muon's own products may round: they
    turn a matrix towards an orthogonal one, and leave its gradient alone.
    """
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    config = load_config(config)
    if "base" in config:
        config.base.optimizer.kind = "adamw"
    if kind == "tpu":
        mesh, _ = planned_mesh("v5e:1x1", {})
        device = mesh.devices.flat[0]
    else:
        mesh, device = make_mesh(devices=jax.devices("cpu")[:1]), kind
    rounded, exact, results = set(), 0, {}
    for program in recipes_programs(config, mesh):
        with jax.set_mesh(mesh), jax.default_device(device):
            trace = program.function.trace(*program.arguments_after(results))
        results[program.name] = trace.out_info
        for equation in equations(trace.jaxpr.jaxpr):
            if equation.primitive.name in PRODUCTS and equation.invars[0].aval.dtype == jnp.float32:
                if "HIGHEST" in str(equation.params["precision"]):
                    exact += 1
                else:
                    rounded.add((program.name, str(equation)))
    assert exact > 10 and not rounded
