"""Routing against a loop over tokens, and the bias that balances it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.routing import (
    FREE,
    affinities,
    expert_load,
    expert_weights,
    load_metrics,
    route,
    route_by_table,
    sequence_balance,
    updated_bias,
    with_recorded,
)

V4 = dict(num_experts_per_tok=3, scoring_func="sqrtsoftplus", routed_scaling_factor=1.5)
V3 = dict(num_experts_per_tok=3, n_group=4, topk_group=2, routed_scaling_factor=2.5)
V2 = dict(
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=1.5,
)
PLAIN = dict(num_experts_per_tok=2)
HALVES = dict(num_experts_per_tok=2, n_group=2)


def random_logits(seed=0, m=64, e=16):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, e)).astype(np.float32), (0.3 * rng.normal(size=e)).astype(np.float32)


def loop_affinity(row, scoring_func):
    """The scores of one token, float64."""
    if scoring_func == "sqrtsoftplus":
        return np.sqrt(np.log1p(np.exp(row)))
    return 1 / (1 + np.exp(-row)) if scoring_func == "sigmoid" else np.exp(row) / np.exp(row).sum()


def loop_route(
    logits,
    bias,
    *,
    num_experts_per_tok,
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
):
    """One token at a time, in float64, by sorting: (experts [m a], weights [m a])."""
    experts, weights = [], []
    for row in logits.astype(np.float64):
        sigmoid = scoring_func == "sigmoid"
        affinity = loop_affinity(row, scoring_func)
        choice = affinity + bias
        groups = np.split(np.arange(len(row)), n_group)
        scores = [np.sort(choice[group])[-(2 if sigmoid else 1) :].sum() for group in groups]
        kept = np.concatenate([groups[g] for g in np.argsort(scores)[-topk_group:]])
        chosen = kept[np.argsort(-choice[kept])][:num_experts_per_tok]
        weight = affinity[chosen] / (affinity[chosen].sum() if norm_topk_prob else 1)
        experts.append(chosen)
        weights.append(weight * routed_scaling_factor)
    return np.array(experts), np.array(weights)


@pytest.mark.parametrize(
    "settings",
    [V4, V3, V2, PLAIN, HALVES],
    ids=["V4", "V3", "V2", "one group", "one of two groups"],
)
def test_route_is_the_group_limited_choice(settings):
    """Oracle: a numpy loop over tokens; weights to float32 rounding."""
    logits, bias = random_logits()
    bias = bias if settings is not V2 else 0 * bias
    experts, weights = route(logits, bias if settings is not V2 else None, **settings)
    exact_experts, exact_weights = loop_route(logits, bias, **settings)
    np.testing.assert_array_equal(experts, exact_experts)
    np.testing.assert_allclose(weights, exact_weights, rtol=1e-5)


def test_the_bias_moves_the_choice_and_never_a_weight():
    """Oracle: the sigmoid affinities, gathered by a numpy loop; a bias on all moves nothing."""
    logits, bias = random_logits()
    settings = V3 | dict(norm_topk_prob=False, routed_scaling_factor=1.0)
    experts, weights = route(logits, bias, **settings)
    affinity = 1 / (1 + np.exp(-logits))
    gathered = [[affinity[token, e] for e in chosen] for token, chosen in enumerate(experts)]
    np.testing.assert_allclose(weights, gathered, rtol=1e-6)
    for same, shifted in zip(
        route(logits, bias, **V3), route(logits, bias + 0.5, **V3), strict=True
    ):
        np.testing.assert_array_equal(same, shifted)
    assert (route(logits, 0 * bias, **V3)[0] != experts).any()


@pytest.mark.parametrize("settings", [V3, V2, PLAIN], ids=["v3", "v2", "plain"])
def test_a_kept_choice_stands_and_its_weights_are_those_of_these_logits(settings):
    """Oracle: the affinities of the kept experts by numpy, normalised and scaled as the loop does; a token
    whose choice is free has that of a router without any kept.
    """
    logits, bias = random_logits()
    a, rng = settings["num_experts_per_tok"], np.random.default_rng(1)
    kept = np.stack([rng.permutation(16)[:a] for _ in logits]).astype(np.uint16)
    kept[::3] = FREE
    free_experts, free_weights = route(logits, bias, **settings)
    experts = with_recorded(free_experts, kept)
    names = "scoring_func", "norm_topk_prob", "routed_scaling_factor"
    weighing = {name: settings[name] for name in names if name in settings}
    weights = expert_weights(logits, experts, **weighing)
    np.testing.assert_array_equal(experts, np.where(kept == FREE, free_experts, kept))
    np.testing.assert_array_equal(weights[::3], free_weights[::3])
    softmax = settings.get("scoring_func") == "softmax"
    affinity = np.exp(np.float64(logits)) if softmax else 1 / (1 + np.exp(-np.float64(logits)))
    affinity /= affinity.sum(-1, keepdims=True) if softmax else 1
    wanted = np.take_along_axis(affinity, np.asarray(experts), axis=-1)
    if settings.get("norm_topk_prob", True):
        wanted /= wanted.sum(-1, keepdims=True)
    wanted *= settings.get("routed_scaling_factor", 1.0)
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)


def test_the_bias_gets_no_gradient_and_the_logits_get_the_weights_one():
    """Oracle: zero; and float64 central differences of the loop, with the choice it makes fixed."""
    logits, bias = random_logits(m=3)
    probe = np.arange(9.0).reshape(3, 3)

    def value(logits, bias):
        return (route(logits, bias, **V3)[1] * probe).sum()

    by_logits, by_bias = jax.grad(value, argnums=(0, 1))(logits, bias)
    np.testing.assert_array_equal(by_bias, 0)
    for at in np.ndindex(*logits.shape):
        step = np.zeros(logits.shape)
        step[at] = 1e-5
        up, down = ((loop_route(logits + s, bias, **V3)[1] * probe).sum() for s in (step, -step))
        assert by_logits[at] == pytest.approx((up - down) / 2e-5, abs=1e-4)


@pytest.mark.parametrize("topk_group", [1, 2, 3])
def test_a_token_reaches_at_most_topk_group_groups(topk_group):
    """Oracle: the groups of the chosen experts, counted by numpy."""
    logits, bias = random_logits()
    experts, _ = route(logits, bias, **V3 | dict(topk_group=topk_group))
    assert max(len(set(row // 4)) for row in np.asarray(experts)) <= topk_group


def test_a_normalised_tokens_weights_sum_to_the_scaling_factor():
    """Oracle: invariant: 2.5; also where every affinity is near zero (e^-20)."""
    logits, bias = random_logits()
    for shift in (0, -20):
        weights = route(logits + np.float32(shift), bias, **V3)[1]
        np.testing.assert_allclose(weights.sum(-1), 2.5, rtol=1e-5)


def test_of_equal_experts_and_groups_the_first_are_chosen():
    """Oracle: by hand, as a stable sort does."""
    experts, _ = route(jnp.zeros((1, 16)), jnp.zeros(16), **V3)
    np.testing.assert_array_equal(experts, [[0, 1, 2]])


def test_affinities_that_vanish_are_weighed_by_no_more_than_they_are():
    """Oracle: by hand: three of 1e-20 over their sum and 1e-20, and nothing where they underflow."""
    logits = jnp.log(jnp.float32([[1e-20], [1e-44]])) * jnp.ones(16)
    weights = route(logits, jnp.zeros(16), **V3)[1]
    np.testing.assert_allclose(weights[0], 2.5 / 4, rtol=1e-4)
    np.testing.assert_allclose(weights[1], 0, atol=1e-6)


def test_expert_load_counts_tokens():
    """Oracle: numpy's bincount, over all tokens and over the counted ones alone."""
    experts = np.random.default_rng(0).integers(0, 7, size=(50, 3))
    counted = np.arange(50) % 3 > 0
    np.testing.assert_array_equal(
        expert_load(experts, 8), np.bincount(experts.ravel(), minlength=8)
    )
    kept = np.bincount(experts[counted].ravel(), minlength=8)
    np.testing.assert_array_equal(expert_load(experts, 8, counted), kept)


def test_updated_bias_by_hand():
    """Oracle: by hand: mean 2, so the overloaded goes down, the underloaded up, the mean one stays."""
    bias, load = jnp.array([[0.5, 0.5, 0.5]] * 2), jnp.array([[3.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
    moved = updated_bias(bias, load, speed=0.25)
    np.testing.assert_array_equal(moved, [[0.25, 0.75, 0.5], [0.5, 0.5, 0.5]])


def test_updating_the_bias_balances_a_skewed_router():
    """Oracle: MaxVio (arXiv:2408.15664) = max load / mean load - 1, which is 0 in perfect balance.

    It starts above 2 and ends below 0.1: the bias then swings by its speed around balance.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4096, 8)).astype(np.float32) + np.linspace(-2, 2, 8, dtype=np.float32)

    @jax.jit
    def step(bias):
        load = expert_load(route(logits, bias, **PLAIN)[0], 8)
        return updated_bias(bias, load, speed=0.002), load.max() / load.mean() - 1

    bias, violations = jnp.zeros(8), []
    for _ in range(400):
        bias, violation = step(bias)
        violations.append(float(violation))
    assert violations[0] > 2 and violations[-1] < 0.1


def test_load_metrics_tell_of_every_layer():
    """Oracle: by hand: MaxVio 6 / 3 - 1, 3 / 3 - 1 and 4 / 2 - 1; the entropy of the shares, term by term."""
    loads = {
        "moe_layers": jnp.asarray([[6.0, 0.0, 3.0], [3.0, 3.0, 3.0]]),
        "mtp_0": jnp.asarray([4.0, 1.0, 1.0]),
    }
    wanted = {"max_vio": 2 / 3, "max_vio/moe_0": 1, "max_vio/moe_1": 0, "max_vio/mtp_0": 1}
    wanted["load_entropy/moe_0"] = np.log(3) - 2 / 3 * np.log(2)
    wanted["load_entropy/moe_1"] = np.log(3)
    wanted["load_entropy/mtp_0"] = 2 / 3 * np.log(1.5) + 1 / 3 * np.log(6)
    metrics = load_metrics(loads)
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-7)  # float32
    assert load_metrics({}) == {}


def test_sequence_balance_by_the_printed_equations():
    """Oracle: eqs. 17-20 as a numpy loop over documents and experts; 1e-5 is float32 rounding."""
    rng = np.random.default_rng(0)
    affinity = rng.uniform(0.01, 1, (3, 9, 6)).astype(np.float32)
    segments = np.array(
        [[7, 7, 7, 2, 2, 2, 2, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 1], np.arange(9) + 1]
    )
    wanted = 0.0
    for row, ids in zip(affinity, segments, strict=True):
        for document in set(ids) - {0}:
            s = row[ids == document]
            t = len(s)
            best = np.argsort(-s, axis=1)[:, :2]
            for i in range(6):
                f = 6 / (2 * t) * np.sum(best == i)
                p = np.mean([s[j, i] / s[j].sum() for j in range(t)])
                wanted += t * f * p
    value = sequence_balance(affinity, segments, num_experts_per_tok=2)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_sequence_balance_of_a_uniform_router_is_one_a_token():
    """Oracle: by hand: every f times P is 1 / e where loads and shares are even."""
    affinity = np.full((1, 6, 3), 0.4, np.float32)
    affinity += (
        1e-6 * np.eye(3, dtype=np.float32)[np.arange(6) % 3]
    )  # each expert best for two tokens
    value = sequence_balance(affinity, np.ones((1, 6), np.int32), num_experts_per_tok=1)
    np.testing.assert_allclose(value / 6, 1, rtol=1e-5)


def test_only_the_shares_of_sequence_balance_carry_a_gradient():
    """Oracle: the derivative by hand: sum over documents of f_i / a share's own derivative."""
    rng = np.random.default_rng(1)
    affinity = rng.uniform(0.1, 1, (1, 5, 4)).astype(np.float32)
    ones = np.ones((1, 5), np.int32)
    gradient = jax.grad(lambda s: sequence_balance(s, ones, num_experts_per_tok=2))(affinity)[0]
    s = affinity[0].astype(np.float64)
    best = np.argsort(-s, axis=1)[:, :2]
    f = np.array([4 / (2 * 5) * np.sum(best == i) for i in range(4)])
    total = s.sum(1, keepdims=True)
    wanted = (f - (s @ f)[:, None] / total) / total  # T * P_i is the plain sum of shares
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_the_root_of_softplus_and_its_slope_are_finite_everywhere():
    """Oracle: sqrt(log(1 + e^x)) and its derivative, sigmoid(x) / (2 sqrt(log(1 + e^x))), in float64.
    Float32 has no e^-200, and both are below 1e-43 there.
    """
    x = np.float32([-200, -120, -60, -20.001, -20, -19.999, -5, 0, 5, 60, 200])
    root = np.sqrt(np.log1p(np.exp(np.float64(x))))
    slope = 1 / (1 + np.exp(-np.float64(x))) / (2 * root)
    ours, by_x = jax.vjp(lambda x: affinities(x, "sqrtsoftplus"), x)
    # An exponential of float32's rounding of a logarithm as large as 60
    np.testing.assert_allclose(ours, root, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(by_x(np.ones_like(x))[0], slope, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("level", [-200.0, 0.0, 200.0])
def test_a_table_chooses_experts_and_the_router_weighs_them(level):
    """Oracle: the affinities of the table's experts over their sum, in float64, and central differences.
    They are right where all of a token's affinities underflow in float32, too.
    """
    logits = random_logits(m=5)[0] + np.float32(level)
    tokens, table = np.array([3, 0, 3, 7, 6]), (np.arange(8)[:, None] * 3 + np.arange(3)) % 16
    probe = np.arange(15.0).reshape(5, 3)

    def exact(logits):
        affinity = np.take_along_axis(
            loop_affinity(np.float64(logits), "sqrtsoftplus"), table[tokens], -1
        )
        return 1.5 * affinity / affinity.sum(-1, keepdims=True)

    def value(logits):
        options = dict(scoring_func="sqrtsoftplus", routed_scaling_factor=1.5)
        experts, weights = route_by_table(logits, tokens, jnp.float32(table), **options)
        return (weights * probe).sum(), (experts, weights)

    by_logits, (experts, weights) = jax.grad(value, has_aux=True)(logits)
    np.testing.assert_array_equal(experts, table[tokens])
    np.testing.assert_allclose(weights, exact(logits), rtol=1e-5)
    for at in np.ndindex(*logits.shape):
        step = np.zeros(logits.shape)
        step[at] = 1e-4
        up, down = ((exact(logits + s) * probe).sum() for s in (step, -step))
        assert by_logits[at] == pytest.approx((up - down) / 2e-4, abs=1e-4)
