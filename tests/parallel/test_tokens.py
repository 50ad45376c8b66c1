"""A function of single tokens, split over every device, against the same function on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.tokens import over_tokens
from tests.quick import others_slow

V, D = 11, 6
MESHES = {
    "data, context, tensor": dict(data=2, context=2, tensor=2),
    "pipeline, expert": dict(data=1, pipeline=2, expert=4),
}
SHAPES = {"even": (8, 8), "neither splits": (3, 5), "one token": (1, 1), "t does not": (8, 3)}
SCORE = functools.partial(token_logprobs, chunk_size=2)  # several chunks a device


def inputs(b, t):
    rng = np.random.default_rng(0)
    hidden, head = (rng.normal(size=s).astype(np.float32) for s in ((b, t, D), (V, D)))
    return hidden, head, rng.integers(0, V, (b, t)).astype(np.int32)


def probed(hidden, head, targets):
    """(a scalar that every log-probability moves differently, (logprobs, entropy))."""
    logprobs, entropy = over_tokens(SCORE, hidden, head, targets)
    probe = 1 + jnp.cos(jnp.arange(logprobs.size)).reshape(logprobs.shape)
    return (logprobs * probe).sum(), (logprobs, entropy)


def compiled():
    return jax.jit(jax.grad(probed, argnums=(0, 1), has_aux=True))


CASES = [(mesh, shape) for mesh in MESHES for shape in SHAPES]
QUICK = [case for case in CASES if "data, context, tensor" in case]


@pytest.mark.parametrize(
    ("mesh", "shape"), others_slow(CASES, *QUICK, ("pipeline, expert", "neither splits"))
)
def test_the_tokens_of_all_devices_are_scored_as_by_one(mesh, shape):
    """Oracle: float64 log-softmax in numpy; gradients of the plain function, so that the head's, summed over
    devices, is counted once. 1e-5: float32 rounding.
    """
    hidden, head, targets = inputs(*SHAPES[shape])
    with jax.set_mesh(make_mesh(**MESHES[mesh])):
        gradients, (logprobs, entropy) = compiled()(hidden, head, targets)
    logits = hidden.astype(float) @ head.T
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        logprobs, np.take_along_axis(exact, targets[..., None], axis=-1)[..., 0], **close
    )
    np.testing.assert_allclose(entropy, -(np.exp(exact) * exact).sum(-1), **close)
    wanted, _ = compiled()(hidden, head, targets)  # no mesh: the function itself
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), gradients, wanted)


def test_the_gradient_of_the_head_is_summed_once_for_all_chunks():
    """Oracle: the compiled program has one sum of the head's shape over devices, outside of the loop."""
    hidden, head, targets = inputs(8, 64)
    with jax.set_mesh(make_mesh(**MESHES["data, context, tensor"])):
        text = compiled().lower(hidden, head, targets).compile().as_text()
    assert "while(" in text  # there are chunks
    sums = [line for line in text.splitlines() if " all-reduce(" in line and f"[{V},{D}]" in line]
    assert len(sums) == 1 and "while" not in sums[0].split("op_name")[-1], sums
