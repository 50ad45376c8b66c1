"""Group advantages and the clipped loss, against loops over ragged lists in float64 torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.losses.grpo import grpo_loss, k3_kl, metric_weights
from deepseek_jax.losses.settings import NORMALIZES_STD, GrpoOptions
from tests.quick import others_slow

LENGTHS = (5, 1, 3, 0, 4, 2, 5, 3)
WIDTH = 5
NOISE = 0.5  # nats between two policies: ratios clip on either side, also GSPO's means
SETTINGS = dict(clip_eps=0.2, max_completion_length=7)
LOSS_TYPES = sorted(NORMALIZES_STD)


def make_batch(seed=6, lengths=LENGTHS):
    """Random log-probabilities of four policies, advantages, and lengths that end in padding."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), WIDTH)
    logprobs = rng.normal(-1.5, 0.5, shape).astype(np.float32)
    near = [(logprobs + rng.normal(0, NOISE, shape)).astype(np.float32) for _ in range(3)]
    mask = np.arange(WIDTH) < np.array(lengths)[:, None]
    batch = dict(
        completion_mask=mask,
        advantages=rng.normal(0, 1, len(lengths)).astype(np.float32),
        num_tokens=np.float32(mask.sum()),
        num_completions=np.float32(len(lengths)),
    )
    batch |= dict(zip(("old_logprobs", "ref_logprobs", "sampler_logprobs"), near, strict=True))
    return logprobs, rng.uniform(0, 2, shape).astype(np.float32), batch


def torch_loss(logprobs, batch, *, loss_type, clip_eps, max_completion_length, clip_eps_high=None,
               kl_coef=0.0, importance_cap=None, ratio_cap=None, unbiased_kl=False,
               off_policy_limit=None):  # fmt: skip
    """The papers' sums, one completion and one token at a time, in float64: (loss, gradient)."""
    x = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    old, ref, sampler = (
        torch.tensor(batch[f"{k}_logprobs"], dtype=torch.float64) for k in ("old", "ref", "sampler")
    )
    high = clip_eps if clip_eps_high is None else clip_eps_high
    total = torch.zeros((), dtype=torch.float64)
    for i, n in enumerate(int(m.sum()) for m in batch["completion_mask"]):
        for t in range(n):
            ratio = torch.exp(x[i, t] - old[i, t])
            if loss_type == "gspo":
                ratio = torch.exp((x[i, :n] - old[i, :n]).mean())
            a = float(batch["advantages"][i])
            if loss_type == "cispo":
                term = torch.clamp(ratio.detach(), max=1 + high) * a * x[i, t]
            else:
                whole = torch.clamp(ratio, max=ratio_cap or torch.inf)
                term = torch.minimum(whole * a, torch.clamp(ratio, 1 - clip_eps, 1 + high) * a)
            if off_policy_limit is not None and a < 0:
                drift = sum(float(sampler[i, s] - logprobs[i, s]) for s in range(n)) / n
                term = term * (drift <= off_policy_limit)
            if importance_cap is not None:
                term = term * min(float(torch.exp(old[i, t] - sampler[i, t])), importance_cap)
            d = ref[i, t] - x[i, t]
            weight = torch.exp(x[i, t] - old[i, t]) if unbiased_kl else 1.0
            weight = weight * float(batch.get("kl_weight", np.ones(len(LENGTHS)))[i])
            term = term - kl_coef * weight * (torch.exp(d) - d - 1)
            count = sum(LENGTHS) if loss_type in ("dapo", "cispo") else len(LENGTHS)
            inner = {"dapo": 1, "cispo": 1, "dr_grpo": max_completion_length}.get(loss_type, n)
            total = total - term / inner / count
    total.backward()
    return total.item(), x.grad.numpy()


def call_loss(logprobs, entropy, batch, **settings):
    """grpo_loss with SETTINGS, or others in their place."""
    given = SETTINGS | settings
    length = given.pop("max_completion_length")
    return grpo_loss(logprobs, entropy, batch, GrpoOptions(**given), max_completion_length=length)


@functools.cache
def compiled(**settings):
    loss = functools.partial(call_loss, **settings)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_and_grad(logprobs, entropy, batch, **settings):
    (value, metrics), grad = compiled(**settings)(logprobs, entropy, batch)
    return float(value), np.asarray(grad), {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize(
    "extra",
    [{}, dict(kl_coef=0.3), dict(clip_eps_high=0.28, kl_coef=0.04, importance_cap=1.1)],
    ids=["plain", "kl", "clip_higher_kl_importance"],
)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_follow_the_papers_sums(loss_type, extra):
    """Oracle: loops over ragged completions and autograd, float64 torch. float32 leaves 1e-6."""
    logprobs, entropy, batch = make_batch()
    value, grad, metrics = loss_and_grad(logprobs, entropy, batch, loss_type=loss_type, **extra)
    want_value, want_grad = torch_loss(logprobs, batch, loss_type=loss_type, **SETTINGS | extra)
    assert (metrics["clip_fraction_low"] > 0) == (loss_type != "cispo")
    assert metrics["clip_fraction_high"] > 0
    assert value == pytest.approx(want_value, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)


V3_2 = dict(kl_coef=0.3, unbiased_kl=True, off_policy_limit=0.05)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_v3_2s_options_follow_its_sums(loss_type):
    """Oracle: loops over ragged completions and autograd, float64 torch, as above; by hand, that some
    completions are masked and others with a negative advantage are not.
    """
    logprobs, entropy, batch = make_batch()
    batch["kl_weight"] = np.float32([0, 1, 0.5, 1, 0, 2, 1, 1])
    settings = dict(V3_2, loss_type=loss_type)
    settings |= {} if loss_type == "cispo" else dict(ratio_cap=1.3)
    value, grad, metrics = loss_and_grad(logprobs, entropy, batch, **settings)
    want_value, want_grad = torch_loss(logprobs, batch, **SETTINGS | settings)
    mask = batch["completion_mask"]
    negative = (mask & (batch["advantages"] < 0)[:, None]).sum() / mask.sum()
    assert 0 < metrics["off_policy_fraction"] < negative
    assert value == pytest.approx(want_value, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)


def test_an_unbiased_kl_has_a_gradient_while_the_policy_has_not_moved():
    """Oracle: by hand: at old = policy the gradient of r (exp(d) - d - 1) is (exp(d) - d - 1) + (1 - exp(d)),
    which is -d: the gradient of the KL itself, E[log(pi / ref) grad log pi]. Without r it is 1 - exp(d).
    """
    logprobs, entropy, batch = make_batch(lengths=(WIDTH,) * 8)
    del batch["old_logprobs"]
    batch["advantages"] = np.zeros(8, np.float32)
    _, grad, metrics = loss_and_grad(logprobs, entropy, batch, kl_coef=0.5, unbiased_kl=True)
    d = batch["ref_logprobs"] - logprobs
    np.testing.assert_allclose(grad, 0.5 * -d / (8 * WIDTH), rtol=1e-4, atol=1e-8)
    assert metrics["kl"] == pytest.approx((np.exp(d) - d - 1).mean(), rel=1e-5)


def test_two_sided_clipping_ends_the_gradient_of_a_large_ratio_with_a_negative_advantage():
    """Oracle: by hand, at ratios 3 and 5 with a cap of 4: the loss of the second is that of the cap, flat."""
    log_ratio = np.log(np.array([[3.0], [5.0]], np.float32))
    zeros = np.zeros_like(log_ratio)
    batch = dict(
        completion_mask=zeros == 0,
        advantages=np.array([-1, -1], np.float32),
        old_logprobs=zeros,
        sampler_logprobs=zeros,
        num_tokens=np.float32(2),
        num_completions=np.float32(2),
    )
    value, grad, metrics = loss_and_grad(log_ratio, zeros, batch, ratio_cap=4.0)
    assert value == pytest.approx((3 + 4) / 2)
    np.testing.assert_allclose(grad[:, 0], [3 / 2, 0], rtol=1e-6)
    assert metrics["clip_fraction_high"] == 0.5


def test_metrics_are_means_over_the_real_tokens():
    """Oracle: a numpy loop over the tokens that are not padding; without an advantage there is no gradient
    that clipping could limit.
    """
    logprobs, entropy, batch = make_batch()
    batch["advantages"][0] = 0
    ratios = np.exp(logprobs - batch["old_logprobs"])[0]
    assert ratios.min() < 0.8 and ratios.max() > 1.2
    settings = dict(loss_type="grpo", kl_coef=0.1, importance_cap=1.1)
    _, _, metrics = loss_and_grad(logprobs, entropy, batch, **settings)
    rows = {k: [] for k in metrics}
    for i, t in zip(*np.nonzero(batch["completion_mask"]), strict=True):
        lp, a = logprobs[i, t], batch["advantages"][i]
        old, ref, sampler = (batch[f"{k}_logprobs"][i, t] for k in ("old", "ref", "sampler"))
        ratio = np.exp(lp - old)
        low, high = ratio < 0.8 and a < 0, ratio > 1.2 and a > 0
        gap = abs(old - sampler)
        row = dict(entropy=entropy[i, t], ratio_mean=ratio, clip_fraction_low=low)
        row |= dict(clip_fraction_high=high, clip_fraction=low or high)
        row |= dict(sampler_gap_mean=gap, sampler_gap_max=gap, sampler_gap_share=float(gap > 1e-2))
        row |= dict(importance_weight_mean=min(np.exp(old - sampler), 1.1))
        row |= dict(kl=np.exp(ref - lp) - (ref - lp) - 1)
        for k, v in row.items():
            rows[k].append(v)
    assert metrics.pop("learned_tokens") == len(rows["entropy"])
    del rows["learned_tokens"]
    want = {k: max(v) if k.endswith("_max") else np.mean(v) for k, v in rows.items()}
    assert metrics == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_metrics_of_unequal_batches_are_weighed_into_those_of_both(loss_type):
    """Oracle: grpo_loss of all rows at once; rtol: float32. Of the two batches one has 15 of 23 tokens and 6
    of 8 completions.
    """
    options = dict(kl_coef=0.1, importance_cap=2.0, off_policy_limit=0.1, clip_eps=0.2)
    options = GrpoOptions(loss_type=loss_type, **options)
    logprobs, entropy, whole = make_batch()

    def measured(rows):
        batch = {name: x[rows] for name, x in whole.items() if x.ndim}
        batch["num_tokens"] = np.float32(batch["completion_mask"].sum())
        batch["num_completions"] = np.float32(len(logprobs[rows]))
        arrays = logprobs[rows], entropy[rows], batch
        loss, metrics = grpo_loss(*arrays, options, max_completion_length=7)
        return metrics | {"loss": loss}, metric_weights(batch, options)

    wanted, weights = measured(slice(None))
    parts, shares = zip(*map(measured, (slice(6), slice(6, None))), strict=True)
    assert wanted.pop("learned_tokens") == sum(part.pop("learned_tokens") for part in parts)
    assert wanted.keys() - weights.keys() == {"sampler_gap_max"}
    for name, value in wanted.items():
        values = [part[name] for part in parts]
        merged = max(values)
        if name in weights:
            merged = np.average(values, weights=[share[name] for share in shares])
            assert weights[name] == sum(share[name] for share in shares)
        np.testing.assert_allclose(merged, value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("pieces", others_slow([2, 4], 4))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_add_up_to_the_whole_batch(loss_type, pieces):
    """Oracle: the undivided batch. 1e-6: only the order of float32 sums differs."""
    logprobs, entropy, batch = make_batch()
    # For marked_advantages
    batch["completion_ids"] = np.arange(logprobs.size, dtype=np.int32).reshape(logprobs.shape)
    settings = dict(loss_type=loss_type, kl_coef=0.1, importance_cap=2.0)
    whole, whole_grad, whole_metrics = loss_and_grad(logprobs, entropy, batch, **settings)

    def cut(x):
        return np.split(x, pieces) if np.ndim(x) else [x] * pieces  # totals stay those of the whole

    cut_batch = {k: cut(v) for k, v in batch.items()}
    parts = [
        loss_and_grad(lp, h, {k: v[j] for k, v in cut_batch.items()}, **settings)
        for j, (lp, h) in enumerate(zip(cut(logprobs), cut(entropy), strict=True))
    ]
    assert sum(p[0] for p in parts) == pytest.approx(whole, abs=1e-6)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole_grad, atol=1e-6)
    for name, value in whole_metrics.items():
        merge = max if name.endswith("_max") else sum
        assert merge(p[2][name] for p in parts) == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("garbage", others_slow([1e30, -1e30, np.nan, np.inf], -1e30, np.nan))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_never_reaches_the_loss_or_its_gradient(loss_type, garbage):
    """Oracle: the batch without the garbage and the three extra columns, up to sum order."""
    logprobs, entropy, batch = make_batch()
    settings = dict(loss_type=loss_type, kl_coef=0.1, importance_cap=2.0)
    clean = loss_and_grad(logprobs, entropy, batch, **settings)

    def spoil(x):
        return np.pad(np.where(batch["completion_mask"], x, garbage), ((0, 0), (0, 3)),
                      constant_values=garbage).astype(np.float32)  # fmt: skip

    dirty = {k: spoil(v) if k.endswith("_logprobs") else v for k, v in batch.items()}
    dirty["completion_mask"] = np.pad(batch["completion_mask"], ((0, 0), (0, 3)))
    value, grad, metrics = loss_and_grad(spoil(logprobs), spoil(entropy), dirty, **settings)
    assert value == pytest.approx(clean[0], abs=1e-6)
    np.testing.assert_allclose(grad[:, :WIDTH], clean[1], atol=1e-6)
    assert not grad[~dirty["completion_mask"]].any()
    assert metrics == pytest.approx(clean[2], abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_ratio_is_one_while_the_policy_has_not_moved(loss_type):
    """Oracle: dS/dtheta = A grad log pi, and the value -mean(A), at old = policy (by hand)."""
    logprobs, entropy, batch = make_batch(lengths=(WIDTH,) * 8)
    del batch["old_logprobs"]
    value, grad, metrics = loss_and_grad(logprobs, entropy, batch, loss_type=loss_type)
    divisor = 8 * (7 if loss_type == "dr_grpo" else WIDTH)
    advantages = np.broadcast_to(batch["advantages"][:, None], grad.shape)
    np.testing.assert_allclose(grad, -advantages / divisor, rtol=1e-5)
    # cispo's surrogate is not the ratio but log pi
    worth = logprobs if loss_type == "cispo" else 1.0
    assert value == pytest.approx(-(advantages * worth).sum() / divisor, rel=1e-5)
    assert metrics["ratio_mean"] == 1 and metrics["clip_fraction"] == 0


def test_an_absent_old_policy_is_the_policy_itself():
    """Oracle: the same call with old_logprobs spelled out."""
    logprobs, entropy, batch = make_batch()
    spelled = batch | dict(old_logprobs=logprobs)
    del batch["old_logprobs"]
    settings = dict(loss_type="grpo", importance_cap=1.1)
    absent = loss_and_grad(logprobs, entropy, batch, **settings)
    value, grad, metrics = loss_and_grad(logprobs, entropy, spelled, **settings)
    assert value == pytest.approx(absent[0]) and metrics == pytest.approx(absent[2])
    np.testing.assert_allclose(grad, absent[1], rtol=1e-6)


def test_equal_rewards_leave_no_policy_gradient_only_the_kl():
    """Oracle: by hand, A = 0, and d(k3)/d(logprob) = 1 - exp(d)."""
    logprobs, entropy, batch = make_batch(lengths=(WIDTH,) * 8)
    batch["advantages"] = np.asarray(group_advantages(jnp.full(8, 0.1), group_size=4))
    _, grad, _ = loss_and_grad(logprobs, entropy, batch, loss_type="grpo")
    assert not grad.any()
    _, grad, _ = loss_and_grad(logprobs, entropy, batch, loss_type="grpo", kl_coef=0.5)
    want = 0.5 * (1 - np.exp(batch["ref_logprobs"] - logprobs)) / (8 * WIDTH)
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-8)


def test_grpo_is_dapo_when_all_lengths_are_equal():
    """Oracle: the other normaliser; mean of means is the mean. dr_grpo is |o| / L_max of it."""
    logprobs, entropy, batch = make_batch(lengths=(WIDTH,) * 8)
    values = {k: loss_and_grad(logprobs, entropy, batch, loss_type=k)[0] for k in LOSS_TYPES}
    assert values["grpo"] == pytest.approx(values["dapo"], rel=1e-5)
    assert values["dr_grpo"] == pytest.approx(values["grpo"] * WIDTH / 7, rel=1e-5)


def test_gspo_of_one_token_is_grpo():
    """Oracle: the token ratio, which is then the ratio of the sequence."""
    logprobs, entropy, batch = make_batch(lengths=(1,) * 8)
    gspo, grpo = (
        loss_and_grad(logprobs, entropy, batch, loss_type=k, kl_coef=0.1) for k in ("gspo", "grpo")
    )
    assert gspo[0] == pytest.approx(grpo[0], rel=1e-6)
    np.testing.assert_allclose(gspo[1], grpo[1], rtol=1e-6)


def test_clip_eps_of_10_clips_only_gains_above_a_ratio_of_11():
    """Oracle: by hand, bounds [-9, 11]: of these six tokens only ratio 12 with A > 0 is flat."""
    log_ratio = np.log(np.array([[1e-3], [10.9], [12.0], [1e-3], [10.9], [12.0]], np.float32))
    zeros = np.zeros_like(log_ratio)
    batch = dict(
        completion_mask=zeros == 0,
        advantages=np.array([1, 1, 1, -1, -1, -1], np.float32),
        old_logprobs=zeros,
        sampler_logprobs=zeros,
        num_tokens=np.float32(6),
        num_completions=np.float32(6),
    )
    options = dict(loss_type="grpo", clip_eps=10.0, lower_bound=False)
    _, grad, metrics = loss_and_grad(log_ratio, zeros, batch, **options)
    np.testing.assert_array_equal(grad[:, 0] != 0, [True, True, False, True, True, True])
    assert metrics["clip_fraction"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_of_padding_alone_is_zero(loss_type):
    """Oracle: by hand, an empty sum; its normalisers are 0 too."""
    logprobs, entropy, batch = make_batch(lengths=(0,) * 8)
    batch |= dict(num_completions=np.float32(0))
    value, grad, metrics = loss_and_grad(
        logprobs, entropy, batch, loss_type=loss_type, kl_coef=0.1, importance_cap=2.0
    )
    assert value == 0 and not grad.any() and not any(metrics.values())


def test_extreme_log_ratios_stay_finite():
    """Oracle: invariant; exp(200) would be inf, and inf * 0 NaN."""
    logprobs, entropy, batch = make_batch()
    batch["old_logprobs"] = logprobs - np.float32(200)
    batch["ref_logprobs"] = logprobs + np.float32(200)
    batch["sampler_logprobs"] = logprobs - np.float32(400)
    batch["advantages"] *= np.arange(8) % 2
    for loss_type in LOSS_TYPES:
        value, grad, metrics = loss_and_grad(
            logprobs, entropy, batch, loss_type=loss_type, kl_coef=0.1, importance_cap=2.0
        )
        assert np.isfinite(value) and np.isfinite(grad).all()
        assert np.isfinite(list(metrics.values())).all()


def test_k3_is_zero_at_equal_logprobs_and_positive_elsewhere():
    """Oracle: exp(d) - d - 1 in float64."""
    d = np.concatenate([np.linspace(-3, 3, 41), [1e-3, -1e-3]])
    got = np.asarray(k3_kl(jnp.zeros(len(d)), jnp.asarray(d, jnp.float32)))
    np.testing.assert_allclose(got, np.exp(d) - d - 1, rtol=2e-4, atol=1e-9)
    assert (got[d != 0] > 0).all() and (got[d == 0] == 0).all()


@pytest.mark.parametrize(
    "normalize_std, want", [(True, [1.5, -0.5, -0.5, -0.5]), (False, [0.75, -0.25, -0.25, -0.25])]
)
def test_advantages_of_one_right_answer_in_four(normalize_std, want):
    """Oracle: by hand, mean 0.25, unbiased std 0.5. 1e-5: the 1e-6 beside the std, times 1.5."""
    rewards = jnp.array([1.0, 0, 0, 0, 0, 0, 0, 10])
    got = group_advantages(rewards, group_size=4, normalize_std=normalize_std)
    np.testing.assert_allclose(got[:4], want, atol=1e-5)
    scale = 1 if normalize_std else 10
    np.testing.assert_allclose(got[4:], scale * np.array(want)[::-1], atol=1e-4)


def test_unscored_completions_leave_their_group_as_if_absent():
    """Oracle: numpy mean and std(ddof=1) of the scored ones; nobody or one scored gives 0."""
    nan = np.nan
    rewards = np.array([[1, nan, 0, 2], [nan, nan, nan, 3], [nan] * 4, [nan, 2, 2, 2]], np.float32)
    got = np.asarray(group_advantages(jnp.asarray(rewards.ravel()), group_size=4)).reshape(4, 4)
    scored = rewards[0][[0, 2, 3]]
    want = (scored - scored.mean()) / (scored.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(got[0][[0, 2, 3]], want, rtol=1e-5, atol=1e-7)
    assert got[0][1] == 0 and not got[1:].any()


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-8, 3.3333333, -2.2, 1e6])
def test_equal_rewards_give_exactly_zero(value):
    """Oracle: by hand; the float32 mean of seven 0.1s is not 0.1. Also beside one without a score."""
    for group_size in (2, 3, 7, 16):
        got = group_advantages(jnp.full(2 * group_size, value), group_size=group_size)
        assert not np.asarray(got).any()
        unscored = jnp.full(group_size + 1, value).at[0].set(jnp.nan)
        assert not np.asarray(group_advantages(unscored, group_size=group_size + 1)).any()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(loss_type="grpo", clip_eps=0.0), "^clip_eps=0.0 must be above 0"),
        (dict(loss_type="dapo", clip_eps=1.0), "^clip_eps=1.0 leaves ratios no lower bound"),
        (dict(loss_type="dr_grpo", max_completion_length=0), "^max_completion_length=0 must be"),
        (dict(ratio_cap=1.1), r"^ratio_cap=1.1 must be above 1 \+ clip_eps_high = 1.2"),
        (dict(loss_type="cispo", ratio_cap=5.0), "^ratio_cap=5.0 .* no use with cispo"),
        (dict(unbiased_kl=True), "^unbiased_kl=True, but kl_coef=0 has no KL"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """Oracle: the argument in the message."""
    logprobs, entropy, batch = make_batch()
    with pytest.raises(ValueError, match=message):
        call_loss(logprobs, entropy, batch, **settings)


def test_a_kl_without_a_reference_is_an_error():
    """Oracle: the message says what the batch holds."""
    logprobs, entropy, batch = make_batch()
    del batch["ref_logprobs"]
    with pytest.raises(ValueError, match="kl_coef=0.1 needs ref_logprobs"):
        call_loss(logprobs, entropy, batch, kl_coef=0.1)


@pytest.mark.parametrize("group_size", [0, 1, 3])
def test_a_group_size_that_forms_no_groups_is_an_error(group_size):
    """Oracle: eight rewards; one alone has nothing to be compared with."""
    with pytest.raises(ValueError, match=f"^group_size={group_size} does not cut 8 rewards"):
        group_advantages(jnp.zeros(8), group_size=group_size)
