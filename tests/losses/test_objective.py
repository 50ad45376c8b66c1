"""A distillation objective: its terms, their weighted sum, and what each one's gradient reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses.distillation import gradient_norms
from deepseek_jax.losses.feature_distillation import init_projections
from deepseek_jax.losses.objective import PROJECTIONS, SAMPLED, Objective, l2_penalty
from deepseek_jax.losses.top_k import top_k_logprobs
from deepseek_jax.models import forward, head_weight, hidden_states
from tests.tiny import VOCAB, tiny_model

B, T, TEMPERATURE = 2, 9, 2.0
WEIGHTS = dict(soft=0.5, hard=0.3, hidden=0.2, relations=0.1, on_policy=0.4, l2=1e-3)
STUDENT, TEACHER = tiny_model("gqa"), tiny_model("mla_moe")


def rows(seed, *, weighted):
    """B rows of one text each, the last of row 0 padding, and a prompt of three tokens."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (B, T)).astype(np.int32)
    segment_ids = np.ones((B, T), np.int32)
    segment_ids[0, -2:] = 0
    mask = np.zeros((B, T), bool)
    mask[:, 2:-1] = segment_ids[:, 3:] > 0
    weights = np.where(mask, np.random.default_rng(seed).uniform(0.5, 2, (B, T)), 0)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": segment_ids,
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        "loss_mask": mask,
        "normalizer": np.float32(mask.sum()),
    }
    if weighted:
        batch |= {
            "loss_weights": weights.astype(np.float32),
            "normalizer": np.float32(weights.sum()),
        }
    return batch


def whole_batch():
    """Texts, and rows that were sampled."""
    sampled = {SAMPLED + name: array for name, array in rows(1, weighted=False).items()}
    return rows(0, weighted=True) | sampled | {"temperature": np.float32(TEMPERATURE)}


def objective(**fields):
    defaults = dict(weights=WEIGHTS, relation_heads=2)
    return Objective(student=STUDENT[0], teacher=TEACHER[0], **defaults | fields)


@pytest.fixture(scope="module")
def params():
    config = STUDENT[0]
    sizes = config.num_hidden_layers, config.hidden_size, TEACHER[0].hidden_size
    matrices = init_projections(jax.random.key(3), *sizes) + 0.1
    return STUDENT[1] | {PROJECTIONS: matrices}


def logprobs(model, batch, temperature):
    config, params = model
    options = {name: batch[name] for name in ("segment_ids", "positions")}
    logits = np.asarray(forward(config, params, batch["tokens"], **options), np.float64)
    logits /= temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected_logit_terms(batch, kl_of):
    """soft and hard by numpy, from the logits of whole models, in float64."""
    logp, logq = (logprobs(model, batch, TEMPERATURE) for model in (TEACHER, STUDENT))
    weight = batch.get("loss_weights", batch["loss_mask"]) / batch["normalizer"]
    soft = TEMPERATURE**2 * kl_of(logp, logq)
    plain = logprobs(STUDENT, batch, 1.0)
    hard = -np.take_along_axis(plain, batch["targets"][..., None], -1)[..., 0]
    return (weight * soft).sum(), (weight * hard).sum()


def forward_kl(logp, logq):
    return (np.exp(logp) * (logp - logq)).sum(-1)


def test_terms_of_logits_are_those_of_whole_models(params):
    """Oracle: numpy's definitions over the logits of both, in float64; 1e-4: float32's rounding."""
    batch = whole_batch()
    found = objective().terms(params, batch, TEACHER[1])
    soft, hard = expected_logit_terms(batch, forward_kl)
    sampled = {k.removeprefix(SAMPLED): v for k, v in batch.items() if k.startswith(SAMPLED)}
    reverse, _ = expected_logit_terms(sampled, lambda logp, logq: forward_kl(logq, logp))
    for name, wanted in (("soft", soft), ("hard", hard), ("on_policy", reverse)):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, err_msg=name)
    assert set(found) == set(WEIGHTS) and all(value > 0 for value in found.values())


def test_the_loss_is_the_weighted_sum_and_has_its_gradient(params):
    """Oracle: the terms one by one, each with its own gradient; the loss takes soft's and hard's from the
    pass that finds their values. 1e-4: float32 sums in another order.
    """
    batch, made = whole_batch(), objective()

    def one_by_one(params):
        terms = made.terms(params, batch, TEACHER[1])
        return sum(WEIGHTS[name] * value for name, value in terms.items()), terms

    wanted, gradient = jax.jit(jax.value_and_grad(one_by_one, has_aux=True))(params)
    found, own = jax.jit(
        jax.value_and_grad(lambda p: made.loss(p, batch, TEACHER[1]), has_aux=True)
    )(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, wanted)
    for ours, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_each_terms_gradient_reaches_only_what_it_should(params):
    """Oracle: by hand. The teacher gets none of any term; projections that of hidden alone; the embedding
    some of each; and that of relations ends below the last layer's feed-forward.
    """
    batch, made = whole_batch(), objective()

    @jax.jit
    def gradients(params, teacher):
        return jax.jacrev(lambda p, t: made.terms(p, batch, t), argnums=(0, 1))(params, teacher)

    found = gradients(params, TEACHER[1])
    for name, (own, teacher) in found.items():
        assert all(not leaf.any() for leaf in jax.tree.leaves(teacher)), name
        assert bool(own[PROJECTIONS].any()) == (name == "hidden"), name
        assert own["embedding"].any(), name
    feed_forward = found["relations"][0]["dense_layers"]["ffn"]
    assert all(leaf[0].any() and not leaf[1].any() for leaf in jax.tree.leaves(feed_forward))
    _, norms = jax.jit(lambda p: gradient_norms(lambda q: made.terms(q, batch, TEACHER[1]), p))(
        params
    )
    assert all(norm > 0 for norm in norms.values())


def test_the_penalty_pulls_weights_and_leaves_norms_and_biases():
    """Oracle: by hand: the gradient of half a square is the weight, and 0 for norm scales and biases."""
    gradient = jax.grad(l2_penalty)(STUDENT[1] | {PROJECTIONS: jnp.ones((2, 3, 3))})
    assert not gradient.pop(PROJECTIONS).any()
    for (path, leaf), weight in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(STUDENT[1]), strict=True
    ):
        name = path[-1].key
        is_weight = name != "scale" and not name.endswith("bias")
        np.testing.assert_allclose(leaf, weight if is_weight else 0 * weight, rtol=1e-6)


def test_a_cache_of_all_tokens_is_the_teacher_at_hand():
    """Oracle: the dense term: k = V drops nothing. 1e-4: rounding of two roads."""
    batch = whole_batch()
    config, teacher = TEACHER
    hidden, _ = hidden_states(config, teacher, batch["tokens"], segment_ids=batch["segment_ids"])
    flat = hidden.reshape(-1, hidden.shape[-1])
    found = top_k_logprobs(flat, head_weight(config, teacher), VOCAB, TEMPERATURE)
    names = ("top_ids", "top_logprobs", "dropped")
    cached = {n: x.reshape(B, T, *x.shape[1:]) for n, x in zip(names, found, strict=True)}
    made = objective(weights=dict(soft=0.7, hard=0.3))
    dense, _ = made.loss(STUDENT[1], batch, teacher)
    without_teacher = dataclasses.replace(made, teacher=None)
    stored, _ = without_teacher.loss(STUDENT[1], batch | cached, {})
    np.testing.assert_allclose(stored, dense, rtol=1e-4)


def test_padding_and_prompts_count_nothing():
    """Oracle: the same batch with other tokens where nothing is learned and nothing is seen: the padding."""
    batch, made = whole_batch(), objective(weights=dict(soft=0.5, hard=0.5))
    changed = batch | {"tokens": np.where(batch["segment_ids"] > 0, batch["tokens"], 7)}
    changed["targets"] = np.where(batch["loss_mask"], batch["targets"], 7)
    before, after = (made.loss(STUDENT[1], b, TEACHER[1])[0] for b in (batch, changed))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_hard_alone_asks_no_teacher():
    """Oracle: numpy's cross-entropy, and no teacher to be had."""
    batch = whole_batch()
    made = objective(weights=dict(hard=2.0), teacher=None)
    loss, _ = made.loss(STUDENT[1], batch, {})
    _, hard = expected_logit_terms(batch, forward_kl)
    np.testing.assert_allclose(loss, 2 * hard, rtol=1e-4)
