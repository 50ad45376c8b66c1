"""Residual streams against numpy loops in float64."""

import jax
import numpy as np
import pytest

from deepseek_jax.ops import streams
from tests.ops.test_attention import normal

Z, D, EPS = 4, 6, 1e-6
CLOSE = dict(atol=2e-6, rtol=2e-5)  # float32 rounding


def loop_logits(token, w, eps):
    """Logits of one token's streams [z d], with w [z d x]: all numbers normed together."""
    flat = token.astype(np.float64).ravel()
    flat = flat / np.sqrt(np.mean(flat**2) + eps)
    return flat @ w.reshape(len(flat), -1)


def loop_sinkhorn(logits, iterations, eps):
    """One matrix, in place, row by row and column by column."""
    c = np.zeros(logits.shape)
    for j, row in enumerate(logits.astype(np.float64)):
        c[j] = np.exp(row - row.max())
        c[j] = c[j] / c[j].sum() + eps
    for step in range(iterations):
        for j in range(len(c)) if step else ():
            c[j] /= c[j].sum() + eps
        for k in range(len(c)):
            c[:, k] /= c[:, k].sum() + eps
    return c


def loop_mixing(logits, base, scale, iterations, eps):
    """(read, write, carry) of one token: [z], [z], [z z]."""
    z = round((len(logits) + 1) ** 0.5) - 1
    scaled = logits * np.repeat(scale, [z, z, z * z]) + base
    read, write = 1 / (1 + np.exp(-scaled[:z])), 1 / (1 + np.exp(-scaled[z : 2 * z]))
    return read + eps, 2 * write, loop_sinkhorn(scaled[2 * z :].reshape(z, z), iterations, eps)


def random_mixing(iterations=20):
    """(streams, output, our Mixing, [the loop's of each token])."""
    x, w, base = normal(0, 2, 3, Z, D), normal(1, Z, D, 24), normal(2, 24)
    scale = np.float32([0.7, 1.3, 0.9])
    logits = streams.coefficient_logits(x, w, EPS)
    ours = streams.mixing(logits, base, scale, iterations=iterations, eps=EPS)
    loops = {
        at: loop_mixing(loop_logits(x[at], w, EPS), base, scale, iterations, EPS)
        for at in np.ndindex(2, 3)
    }
    return x, normal(3, 2, 3, D), ours, loops


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_coefficients_are_those_of_the_definition(iterations):
    """Oracle: a numpy loop over tokens, rows and columns (arXiv:2512.24880)."""
    _, _, ours, loops = random_mixing(iterations)
    for at, exact in loops.items():
        for one, other in zip(ours, exact, strict=True):
            np.testing.assert_allclose(one[at], other, **CLOSE)


def test_every_stream_passes_on_all_of_itself_and_no_stream_grows():
    """Oracle: invariant: columns of carry sum to 1, and after 20 iterations rows nearly do: logits of size
    5 leave 4%. It is not symmetric.
    """
    carry = np.asarray(random_mixing()[2].carry)
    np.testing.assert_allclose(carry.sum(-2), 1, atol=1e-5)
    np.testing.assert_allclose(carry.sum(-1), 1, atol=0.04)
    assert np.abs(carry - np.swapaxes(carry, -1, -2)).max() > 0.1


def test_a_sublayer_reads_a_sum_and_writes_to_every_stream():
    """Oracle: loops over streams, with the coefficients of the loop."""
    x, output, ours, loops = random_mixing()
    read, written = streams.read(x, ours.read), streams.write(x, output, ours)
    for at, (weights, write, carry) in loops.items():
        np.testing.assert_allclose(read[at], sum(weights[j] * x[at][j] for j in range(Z)), **CLOSE)
        for k in range(Z):
            exact = write[k] * output[at] + sum(carry[j, k] * x[at][j] for j in range(Z))
            np.testing.assert_allclose(written[at][k], exact, **CLOSE)


def test_gradients_pass_through_the_iterations():
    """Oracle: central differences of the loop in float64."""
    logits, probe = normal(0, 3, 3), normal(1, 3, 3)
    ours = jax.grad(lambda a: (streams.sinkhorn(a[None, None], 5, EPS)[0, 0] * probe).sum())(logits)
    for at in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[at] = 1e-6
        up, down = ((loop_sinkhorn(logits + s, 5, EPS) * probe).sum() for s in (step, -step))
        assert ours[at] == pytest.approx((up - down) / 2e-6, abs=1e-5)
