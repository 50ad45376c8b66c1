"""Layers in stages against a plain loop over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.pipeline import pipeline, pipeline_stages

LAYERS, B, T, D = 8, 16, 4, 6
MESHES = {
    "2 stages": dict(pipeline=2, data=2, context=2),
    "4 stages": dict(pipeline=4, data=1, tensor=2),
    "8 stages": dict(pipeline=8, data=1),
}


def inputs(rows=B, layers=LAYERS):
    """(params, carried) of random numbers."""
    rng = np.random.default_rng(0)
    shapes = dict(w=(layers, D, D), x=(rows, T, D), shift=(rows, T), segment_ids=(rows, T))
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {"w": made.pop("w")}, made | {"segment_ids": made["segment_ids"] > -1}


def one_layer(x, w, carried):
    """A row-wise layer that is NaN on rows of zeros, and its report: a sum that is not zero for them."""
    normed = x / jnp.sqrt((x * x).mean(-1, keepdims=True))
    x = x + jnp.tanh(normed @ w + carried["shift"][..., None]) * carried["segment_ids"][..., None]
    return x, {"rows": jnp.full((), len(x)), "cos_d": jnp.cos(x).sum((0, 1))}


def run_stage(params, carried):
    x, told = jax.lax.scan(lambda x, w: one_layer(x, w, carried), carried["x"], params["w"])
    return carried | {"x": x}, told


def loop(params, carried, micro_batches=None):
    x, all_told = carried["x"], []
    for w in params["w"]:
        x, told = one_layer(x, w, carried)
        all_told.append(told)
    return x, jax.tree.map(lambda *layers: jnp.stack(layers), *all_told)


def results(run, micro_batches):
    """The result of run, and gradients through x and through the report."""

    def loss(params, x, carried):
        x, told = run(params, carried | {"x": x}, micro_batches)
        probe = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        return (x * probe).sum() + (told["cos_d"] ** 2).sum() / 100, (x, told)

    params, carried = inputs()
    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return grad(params, carried["x"], carried)


@functools.cache
def wanted():
    return results(loop, None)


@pytest.mark.parametrize(
    "mesh, micro_batches",
    [("2 stages", 1), ("2 stages", 2), ("2 stages", 8), ("4 stages", 2), ("8 stages", 16)],
)
def test_stages_give_what_the_layers_give_one_after_the_other(mesh, micro_batches):
    """Oracle: a Python loop over layers, all rows at once, on one device: x, each layer's report, and
    gradients through both. The report counts every row once: turns in which a stage idles add nothing to it.
    """
    with jax.set_mesh(make_mesh(**MESHES[mesh])):
        ours = results(functools.partial(pipeline, run_stage), micro_batches)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())  # float32 sums
    np.testing.assert_array_equal(ours[1][1]["rows"], np.full(LAYERS, B))


def test_each_stage_holds_its_own_layers_and_passes_rows_on():
    """Oracle: the compiled program sends rows from stage to stage, and gathers no layers."""
    mesh = make_mesh(**MESHES["8 stages"])
    params, carried = inputs()
    place = jax.sharding.NamedSharding(mesh, jax.P("pipeline"))
    with jax.set_mesh(mesh):
        run = jax.jit(functools.partial(pipeline, run_stage, micro_batches=8))
        text = run.lower(jax.device_put(params, place), carried).compile().as_text()
    assert "collective-permute" in text
    whole = f"f32[{LAYERS},{D},{D}]"
    assert not [line for line in text.splitlines() if "all-gather" in line and whole in line]


def test_the_number_of_stages_is_the_meshs():
    """Oracle: the mesh's size, by hand; outside of any, one."""
    assert pipeline_stages() == 1
    with jax.set_mesh(make_mesh(**MESHES["4 stages"])):
        assert pipeline_stages() == 4


@pytest.mark.parametrize(
    "mesh, layers, rows, micro_batches, message",
    [
        ("4 stages", 6, B, 4, r"6 layers do not split over mesh.pipeline=4; set .* of 6"),
        ("2 stages", 8, B, 3, r"pipeline_micro_batches=3 does not split 16 rows .* of 16"),
        ("2 stages", 8, B, 16, r"pipeline_micro_batches=16 .*batch=1 .*mesh.data=2"),
        ("2 stages", 8, 6, 2, r"axis batch=3 does not split over mesh.data=2"),
    ],
)
def test_uneven_counts_are_refused(mesh, layers, rows, micro_batches, message):
    """Oracle: remainders by hand; the message names the field."""
    with jax.set_mesh(make_mesh(**MESHES[mesh])), pytest.raises(ValueError, match=message):
        pipeline(run_stage, *inputs(rows, layers), micro_batches)


def test_tokens_that_do_not_split_are_refused():
    """Oracle: 3 tokens over 2 devices, by hand."""
    params, carried = inputs()
    carried = jax.tree.map(lambda x: x[:, :3], carried)
    with jax.set_mesh(make_mesh(**MESHES["2 stages"])):
        with pytest.raises(ValueError, match=r"seq=3 .*mesh.context=2"):
            pipeline(run_stage, params, carried, 2)
