"""A Linear layer's product over eight devices against the same product on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.decoding import decoding_axes, decoding_mesh
from deepseek_jax.parallel.linear import by_token
from tests.quick import others_slow

MESHES = {
    "fsdp": dict(fsdp=8),
    "tensor": dict(tensor=8),
    "context": dict(context=8),
    "fsdp, context, tensor": dict(fsdp=2, context=2, tensor=2),
    "data, fsdp, expert": dict(data=2, fsdp=2, expert=2),
}
SIZES = dict(b=8, t=16, s=16, d=32, h=8, x=4, u=4, n=4, q=16, c=24, z=2, f=16, j=4, y=8)
# Weights into heads and widths of MLPs, out of them, into latents, and over whole rows; those of an indexer
SPECS = ["btd,dzf->btzf", "bthu,hud->btd", "btd,dq->btq", "btq,qhx->bthx", "bsc,chn->bshn"]
SPECS += ["btq,qjy->btjy", "btd,dy->bty"]


def normal(letters, seed, sizes):
    return np.random.default_rng(seed).standard_normal([sizes[c] for c in letters]).astype("f4")


def results(product, spec, mesh, sizes):
    """[result, gradients of x and w], of a loss that weighs the result's elements."""
    letters = spec.replace("->", ",").split(",")
    x, w, probe = (normal(part, i, sizes) for i, part in enumerate(letters))

    def loss(x, w):
        y = by_token(functools.partial(product, spec), spec, x, w, "float32")
        return (y * probe).sum(), y

    with jax.set_mesh(mesh):
        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, w)
    return jax.device_get([y, *gradients])


def one_device():
    return make_mesh(data=1, devices=jax.devices()[:1])


@functools.cache
def alone(spec):
    return results(dot, spec, one_device(), SIZES)


# Every product over three axes, and one over the others
CASES = [(spec, mesh) for spec in SPECS for mesh in MESHES]
QUICK = [case for case in CASES if "fsdp, context, tensor" in case]
QUICK += [("bthu,hud->btd", "data, fsdp, expert"), ("btd,dzf->btzf", "tensor")]


@pytest.mark.parametrize(("spec", "mesh"), others_slow(CASES, *QUICK))
def test_the_product_and_its_gradients_are_those_of_one_device(spec, mesh):
    """Oracle: ops.dot.dot on one device; float32 sums in another order."""
    ours = results(dot, spec, make_mesh(**{"data": 1} | MESHES[mesh]), SIZES)
    for our, theirs in zip(ours, alone(spec), strict=True):
        np.testing.assert_allclose(our, theirs, atol=1e-5 * np.abs(theirs).max())


def test_partial_gradients_of_bfloat16_rows_add_up_in_float32():
    """Oracle: one device in float32, rounded once; sums of rounded parts would be several roundings off."""
    spec, (x, w, probe) = (
        "btd,dzf->btzf",
        (normal(part, i, SIZES) for i, part in enumerate(("btd", "dzf", "btzf"))),
    )
    x, w, probe = (jnp.asarray(array, jnp.bfloat16) for array in (x, w, probe))

    def gradient(mesh, x, w):
        def loss(x):
            y = by_token(functools.partial(dot, spec), spec, x, w, "float32")
            return (y * probe.astype(y.dtype)).sum(dtype=jnp.float32)

        with jax.set_mesh(mesh):
            return np.asarray(jax.jit(jax.grad(loss))(x), np.float32)

    exact = gradient(one_device(), x.astype(jnp.float32), w.astype(jnp.float32))
    ours = gradient(make_mesh(data=1, tensor=8), x, w.astype(jnp.float32))
    np.testing.assert_allclose(ours, exact, rtol=2.0**-8, atol=1e-6)


def test_rows_that_do_not_split_are_multiplied_on_every_device():
    """Oracle: one device."""
    sizes = SIZES | dict(b=3, t=5)
    ours = results(dot, "btd,dzf->btzf", make_mesh(data=1, fsdp=8), sizes)
    for our, theirs in zip(ours, results(dot, "btd,dzf->btzf", one_device(), sizes), strict=True):
        np.testing.assert_allclose(our, theirs, atol=1e-5 * np.abs(theirs).max())


def test_fp8_rounds_the_same_tiles_where_each_device_has_whole_ones():
    """Oracle: fp8_dot on one device, where tiles of tokens and heads end with a device's."""
    sizes = SIZES | dict(b=2, t=256, h=4, u=64, x=64, d=128)
    mesh = make_mesh(data=2, context=2, tensor=2)
    product = functools.partial(fp8_dot, power_of_two=True)
    for spec in ("bthu,hud->btd", "btd,dhx->bthx"):
        ours = results(product, spec, mesh, sizes)
        for our, theirs in zip(ours, results(product, spec, one_device(), sizes), strict=True):
            np.testing.assert_allclose(our, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_decoding_step_keeps_weights_split_by_head():
    """Oracle: one device for the values; the compiled program, which gathers nothing."""
    heads = SIZES["h"]
    mesh = decoding_mesh(make_mesh(data=1, fsdp=8), heads)
    x, w = normal("bhu", 0, SIZES), normal("hud", 1, SIZES)

    @jax.jit
    def step(x, w):
        with decoding_axes(heads, 1):
            return by_token(functools.partial(dot, "bhu,hud->bd"), "bhu,hud->bd", x, w, "float32")

    with jax.set_mesh(mesh):
        placed = jax.device_put(w, jax.NamedSharding(mesh, jax.P("fsdp")))
        y, text = step(x, placed), step.lower(x, placed).compile().as_text()
    np.testing.assert_allclose(y, np.einsum("bhu,hud->bd", x, w), rtol=1e-4, atol=1e-4)
    assert "all-gather" not in text and "all-reduce" in text
