"""Drawing tokens: the distribution, the frequency of each token, and the reported log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from deepseek_jax.rollout.sampling import Sampling, draw, sample, sampled_logits, verify

FILTERS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(top_k=5),
    Sampling(top_p=0.7),
    Sampling(temperature=1.7, top_k=9, top_p=0.6),
]


def random_logits(b=4, v=40, seed=0):
    return 2 * np.random.default_rng(seed).normal(size=(b, v)).astype(np.float32)


def filtered(logits, sampling):
    """Probabilities by the definitions, a row at a time: temperature, then top-k, then the nucleus."""
    rows = []
    for row in logits.astype(np.float64) / sampling.temperature:
        order = np.argsort(-row)
        kept = order[: sampling.top_k or len(row)]
        probs = np.exp(row[kept] - row.max())
        probs /= probs.sum()
        size = (
            1 + np.searchsorted(np.cumsum(probs), sampling.top_p)
            if sampling.top_p < 1
            else len(kept)
        )
        out = np.zeros(len(row))
        out[kept[:size]] = probs[:size] / probs[:size].sum()
        rows.append(out)
    return np.array(rows)


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_the_sampled_distribution_is_filtered_and_normalised(sampling):
    """Oracle: a numpy loop: the k likeliest, of them the fewest that hold top_p, normalised."""
    logits = random_logits()
    probs = jax.nn.softmax(sampled_logits(jnp.asarray(logits), sampling))
    np.testing.assert_allclose(probs, filtered(logits, sampling), atol=1e-6)


def test_the_likeliest_token_stays_in_the_smallest_nucleus():
    """Oracle: by hand: one token holds more than top_p alone."""
    logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    np.testing.assert_array_equal(sampled_logits(logits, Sampling(top_p=0.01))[0, [0, 2]], -jnp.inf)


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_logprobs_are_of_the_distribution_sampled(sampling):
    """Oracle: the numpy probabilities, after filtering, at the drawn tokens."""
    logits = random_logits(b=64)
    keys = jax.random.split(jax.random.key(0), 64)
    tokens, logprobs, _ = sample(keys, jnp.asarray(logits), sampling)
    probs = filtered(logits, sampling)[np.arange(64), tokens]
    assert (probs > 0).all()
    np.testing.assert_allclose(logprobs, np.log(probs), atol=1e-5)


def test_greedy_takes_the_largest_logit_whatever_the_key():
    """Oracle: numpy's argmax, and its log-softmax at temperature 1."""
    logits = random_logits()
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), 4)
        tokens, logprobs, _ = sample(keys, jnp.asarray(logits), Sampling(temperature=0.0))
        np.testing.assert_array_equal(tokens, logits.argmax(-1))
        exact = np.log(filtered(logits, Sampling()).max(-1))
        np.testing.assert_allclose(logprobs, exact, atol=1e-5)


@pytest.mark.parametrize("v", [7, 128, 300])
def test_tokens_come_as_often_as_their_probabilities_say(v):
    """Oracle: the chi-square test of 20000 draws against the probabilities, some of them zero.

    A right sampler falls below p = 1e-4 once in 10000 seeds, and this seed is fixed.
    """
    rng = np.random.default_rng(v)
    probs = rng.gamma(0.5, size=v) * (rng.random(v) > 0.3)
    probs /= probs.sum()
    n = 20000
    uniform = jax.random.uniform(jax.random.key(v), (n,))
    tokens = draw(uniform, jnp.broadcast_to(jnp.float32(probs), (n, v)))
    counts = np.bincount(tokens, minlength=v)
    assert (counts[probs == 0] == 0).all()
    likely = probs * n > 5  # the rest together, as the test wants at least five in each
    seen = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(probs[likely] * n, probs[~likely].sum() * n)
    kept = expected > 0
    assert (
        scipy.stats.chisquare(seen[kept], expected[kept] * seen.sum() / expected.sum()).pvalue
        > 1e-4
    )


@pytest.mark.parametrize("v", [3, 128, 130, 1000])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_no_uniform_number_draws_a_token_of_probability_zero(v, where):
    """Oracle: by hand: one token holds everything, up to a rounding of the sum; 0 and 1 - 2**-24 too."""
    at = {"first": 0, "middle": v // 2, "last": v - 1}[where]
    uniform = jnp.array([0.0, 1e-30, 0.5, 1 - 2**-23, 1 - 2**-24], jnp.float32)
    for mass in (1.0, 1 + 2**-23, 1 - 2**-20):
        probs = jnp.zeros((5, v)).at[:, at].set(mass)
        np.testing.assert_array_equal(draw(uniform, probs), at)


def test_the_largest_uniform_number_draws_the_last_likely_token():
    """Oracle: by hand: tokens 0 to 199 are alike, 200 to 299 have none; v is no multiple of 128."""
    probs = jnp.where(jnp.arange(300) < 200, 1 / 200, 0.0)[None]
    assert draw(jnp.array([1 - 2**-24], jnp.float32), probs)[0] == 199
    assert draw(jnp.array([0.0], jnp.float32), probs)[0] == 0


@pytest.mark.parametrize("v", [128, 300])
def test_sums_that_round_differently_never_draw_a_zero(v):
    """Oracle: the drawn tokens' own probabilities, over 2000 rows with zeros at both ends.

    A lane is summed twice, at once and token by token; the largest number can lie between the two.
    """
    rng = np.random.default_rng(0)
    probs = rng.gamma(0.3, size=(2000, v)) * (np.abs(np.arange(v) - v / 2) < v / 3)
    probs = jnp.float32(probs / probs.sum(1, keepdims=True))
    tokens = draw(jnp.full(2000, 1 - 2**-24, jnp.float32), probs)
    assert (jnp.take_along_axis(probs, tokens[:, None], axis=1) > 0).all() and tokens.max() < v


def test_draw_inverts_the_cumulative_distribution():
    """Oracle: numpy's searchsorted over the float64 cumulative sum, away from its steps by 1e-6."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(300, 0.3)).astype(np.float32)
    uniform = rng.random(2000).astype(np.float32)
    upto = np.cumsum(probs.astype(np.float64)) / probs.astype(np.float64).sum()
    clear = np.abs(upto[:, None] - uniform).min(0) > 1e-6
    tokens = draw(jnp.asarray(uniform), jnp.broadcast_to(probs, (2000, 300)))
    np.testing.assert_array_equal(
        np.asarray(tokens)[clear], np.searchsorted(upto, uniform, side="right")[clear]
    )
    assert clear.sum() > 1000


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(temperature=-0.1), "temperature=-0.1 must be 0"),
        (dict(temperature=float("nan")), "temperature=nan must be 0"),
        (dict(top_p=0.0), "top_p=0.0 must be above 0"),
        (dict(top_p=1.1), "top_p=1.1 must be above 0 and at most 1"),
        (dict(top_k=-1), "top_k=-1 must be 0"),
        (dict(top_k=41), "top_k=41 must be 0 (keep every token) to vocab_size=40"),
    ],
)
def test_a_setting_that_no_distribution_has_is_refused(settings, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        Sampling(**settings).check(40)
    assert words in str(error.value)


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 3.0])
def test_verified_drafts_and_their_replacements_are_distributed_as_the_model_says(sharpness):
    """Oracle: the theorem of arXiv:2211.17192, appendix A.1: p itself, and sum(min(p, q)) drafts accepted.

    Every draft with its probability, every uniform pair of a 120 by 120 grid: exact to about a cell, 1/120.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 6))
    logits[1] = logits[0] + sharpness * rng.normal(size=6)
    logits[0, 2] = logits[1, 4] = -np.inf  # each has a token that the other lacks
    p, q, after = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    grid = (np.arange(120) + 0.5) / 120
    uniform = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2).astype(np.float32)
    came, kept, followed = np.zeros(6), 0.0, np.zeros(6)
    for draft in np.flatnonzero(q):
        rows = [np.float32([a] * len(uniform)) for a in (q, [p, after])]
        accepted, tokens = jax.jit(verify)(uniform, np.full(len(uniform), draft), *rows)
        kept += q[draft] * np.mean(accepted)
        first = np.where(accepted, draft, tokens)
        came += q[draft] * np.bincount(first, minlength=6) / len(uniform)
        followed += q[draft] * np.bincount(tokens[accepted], minlength=6) / len(uniform)
    np.testing.assert_allclose(came, p, atol=0.01)
    np.testing.assert_allclose(kept, np.minimum(p, q).sum(), atol=0.01)
    np.testing.assert_allclose(followed / kept, after, atol=0.01)
    assert came[2] == 0 and 0.2 < kept < 0.999


def test_a_draft_from_the_model_itself_is_accepted_at_the_largest_uniform_number():
    """Oracle: by hand: p is q; and where q is larger by a rounding, the replacement is a likely token."""
    p = jnp.array([[0.0, 0.25, 0.75, 0.0]], jnp.float32)
    probs, largest = jnp.stack([p, p], axis=1), jnp.full((1, 2), 1 - 2**-24, jnp.float32)
    assert verify(largest, jnp.array([1]), p, probs)[0].all()
    accepted, token = verify(largest, jnp.array([1]), jnp.nextafter(p, 1.0), probs)
    assert not accepted.any() and p[0, token[0]] > 0
