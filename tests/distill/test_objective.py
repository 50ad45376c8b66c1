"""A distillation objective: its terms, their weighted sum, and what each one's gradient reaches."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill import objective as module
from deepseek_jax.distill.cross_tokenizer import shared_vocabulary_loss
from deepseek_jax.distill.divergences import soft_loss
from deepseek_jax.distill.feature_distillation import hidden_state_loss, init_projections
from deepseek_jax.distill.objective import (
    CACHED,
    PROJECTIONS,
    SAMPLED,
    ForwardOutputs,
    Objective,
    l2_penalty,
    token_weights,
)
from deepseek_jax.distill.objective import STUDENT as OWN
from deepseek_jax.distill.relation_distillation import relation_loss
from deepseek_jax.distill.top_k import TopK, top_k_logprobs, top_k_loss
from deepseek_jax.models import (
    forward,
    head_weight,
    hidden_states,
    init_params,
    layer_states,
)
from tests.tiny import SPARSE, VOCAB, random_leaves, tiny_model

B, T, TEMPERATURE = 2, 9, 2.0
WEIGHTS = dict(soft=0.5, hard=0.3, hidden=0.2, relations=0.1, on_policy=0.4, l2=1e-3)
STUDENT, TEACHER = tiny_model("gqa"), tiny_model("mla_moe")
logits_of = jax.jit(forward, static_argnums=0)


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
    defaults = dict(teacher=TEACHER[0], weights=WEIGHTS, relation_heads=2)
    return Objective(student=STUDENT[0], **defaults | fields)


@pytest.fixture(scope="module")
def found():
    """Computed in one program: each term alone with its gradient in student and teacher, and the loss of all
    terms with its gradient.
    """
    config = STUDENT[0]
    sizes = config.num_hidden_layers, config.hidden_size, TEACHER[0].hidden_size
    projections = init_projections(jax.random.key(3), *sizes) + 0.1
    params = {OWN: STUDENT[1], PROJECTIONS: projections}
    batch = whole_batch()

    def loss_of(weights, params, teacher):
        return objective(weights=weights).loss(params, batch, teacher_params=teacher)

    @jax.jit
    def everything(params, teacher):
        terms, gradients = {}, {}
        for name in WEIGHTS:
            alone = jax.value_and_grad(functools.partial(loss_of, {name: 1.0}), (0, 1), True)
            (terms[name], _), gradients[name] = alone(params, teacher)
        loss = jax.value_and_grad(functools.partial(loss_of, WEIGHTS), has_aux=True)
        return terms, gradients, *loss(params, teacher)

    return everything(params, TEACHER[1])


def logprobs(model, batch, temperature):
    config, params = model
    options = {name: batch[name] for name in ("segment_ids", "positions")}
    logits = np.asarray(logits_of(config, params, batch["tokens"], **options), np.float64)
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


def test_terms_of_logits_are_those_of_whole_models(found):
    """Oracle: numpy's definitions over the logits of both, in float64; 1e-4: float32's rounding."""
    batch, terms = whole_batch(), found[0]
    soft, hard = expected_logit_terms(batch, forward_kl)
    sampled = {k.removeprefix(SAMPLED): v for k, v in batch.items() if k.startswith(SAMPLED)}
    reverse, _ = expected_logit_terms(sampled, lambda logp, logq: forward_kl(logq, logp))
    for name, wanted in (("soft", soft), ("hard", hard), ("on_policy", reverse)):
        np.testing.assert_allclose(terms[name], wanted, rtol=1e-4, err_msg=name)
    assert all(value > 0 for value in terms.values())


def test_the_loss_is_the_weighted_sum_and_has_its_gradient(found):
    """Oracle: the terms one by one, each with its own gradient, which are also the loss's metrics. 1e-3:
    float32 sums in another order.
    """
    terms, gradients, (loss, metrics), own = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), metrics, terms)
    wanted = sum(WEIGHTS[name] * value for name, value in terms.items())
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    summed = jax.tree.map(
        lambda *leaves: sum(WEIGHTS[n] * leaf for n, leaf in zip(gradients, leaves, strict=True)),
        *(gradient[0] for gradient in gradients.values()),
    )
    for ours, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_each_terms_gradient_reaches_only_what_it_should(found):
    """Oracle: by hand. No term has a gradient in the teacher; only hidden has one in the projections; each
    has one in the embedding; relations has none in the last layer's feed-forward.
    """
    gradients = found[1]
    for name, (own, teacher) in gradients.items():
        assert all(not leaf.any() for leaf in jax.tree.leaves(teacher)), name
        assert bool(own[PROJECTIONS].any()) == (name == "hidden"), name
        assert own[OWN]["embedding"].any(), name
    feed_forward = gradients["relations"][0][OWN]["dense_layers"]["ffn"]
    assert all(leaf[0].any() and not leaf[1].any() for leaf in jax.tree.leaves(feed_forward))


@pytest.mark.slow
def test_features_are_compared_between_the_layers_that_belong_together(found):
    """Oracle: numpy's 2 - 2 cos of the layers picked by hand, the student's two beside the first and the last
    of the teacher's, weighed as the batch says.
    """
    batch = whole_batch()
    options = {name: batch[name] for name in ("segment_ids", "positions")}
    deep = dataclasses.replace(TEACHER[0], num_hidden_layers=3)
    rng = jax.random.key(1)
    params = nn.unbox(random_leaves(init_params(deep, rng), rng))
    made = objective(teacher=deep, weights=dict(hidden=1.0))
    sizes = 2, STUDENT[0].hidden_size, deep.hidden_size
    projections = init_projections(jax.random.key(3), *sizes) + 0.1
    _, terms = jax.jit(made.loss)(
        {OWN: STUDENT[1], PROJECTIONS: projections}, batch, teacher_params=params
    )
    (_, _, own), (_, _, theirs) = (
        layer_states(*model, batch["tokens"], **options) for model in (STUDENT, (deep, params))
    )
    assert len(own) == 2 and len(theirs) == 3
    distances = []
    for layer, other in ((0, 0), (1, 2)):
        x, y = np.float64(own[layer]) @ np.float64(projections[layer]), np.float64(theirs[other])
        norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        distances.append(2 - 2 * (x * y).sum(-1) / norms)
    wanted = (batch["loss_weights"] / batch["normalizer"] * np.mean(distances, axis=0)).sum()
    np.testing.assert_allclose(terms["hidden"], wanted, rtol=1e-4)


def test_a_cache_tells_its_bound(found):
    """Oracle: soft of all tokens: it is above the cached soft term by at most the bound."""
    batch, (config, teacher) = whole_batch(), TEACHER
    options = {name: batch[name] for name in ("segment_ids", "positions")}
    run = jax.jit(hidden_states, static_argnums=0)
    hidden, _ = run(config, teacher, batch["tokens"], **options)
    flat = hidden.reshape(-1, hidden.shape[-1])
    top = top_k_logprobs(flat, head_weight(config, teacher), 5, TEMPERATURE)
    names = ("top_ids", "top_logprobs", "dropped")
    cached = {n: x.reshape(B, T, *x.shape[1:]) for n, x in zip(names, top, strict=True)}
    made = objective(weights=dict(soft=1.0), teacher=None)
    _, metrics = jax.jit(made.loss)(STUDENT[1], batch | cached, teacher_params={})
    whole = found[0]["soft"]
    assert metrics["soft"] < whole < metrics["soft"] + metrics["soft_bound"]


def test_the_penalty_pulls_weights_and_leaves_norms_and_biases():
    """Oracle: by hand: the gradient of half a square is the weight, and 0 for norm scales and biases."""
    gradient = jax.grad(l2_penalty)({OWN: STUDENT[1], PROJECTIONS: jnp.ones((2, 3, 3))})
    assert not gradient.pop(PROJECTIONS).any()
    for (path, leaf), weight in zip(
        jax.tree.leaves_with_path(gradient[OWN]), jax.tree.leaves(STUDENT[1]), strict=True
    ):
        name = path[-1].key
        is_weight = name != "scale" and not name.endswith("bias")
        np.testing.assert_allclose(leaf, weight if is_weight else 0 * weight, rtol=1e-6)


def test_a_cache_of_all_tokens_is_the_teacher_at_hand():
    """Oracle: numpy's soft and hard terms of whole models: k = V drops nothing. 1e-4: rounding. Other tokens
    in padding, and other targets outside the loss, change nothing.
    """
    batch, (config, teacher) = whole_batch(), TEACHER

    @jax.jit
    def loss(params, teacher, batch):
        options = {name: batch[name] for name in ("segment_ids", "positions")}
        hidden, _ = hidden_states(config, teacher, batch["tokens"], **options)
        flat = hidden.reshape(-1, hidden.shape[-1])
        top = top_k_logprobs(flat, head_weight(config, teacher), VOCAB, TEMPERATURE)
        names = ("top_ids", "top_logprobs", "dropped")
        cached = {n: x.reshape(B, T, *x.shape[1:]) for n, x in zip(names, top, strict=True)}
        made = objective(weights=dict(soft=0.7, hard=0.3), teacher=None)
        return made.loss(params, batch | cached, teacher_params={})[0]

    soft, hard = expected_logit_terms(batch, forward_kl)
    np.testing.assert_allclose(loss(STUDENT[1], teacher, batch), 0.7 * soft + 0.3 * hard, rtol=1e-4)
    changed = batch | {"tokens": np.where(batch["segment_ids"] > 0, batch["tokens"], 7)}
    changed["targets"] = np.where(batch["loss_mask"], batch["targets"], 7)
    before, after = (loss(STUDENT[1], teacher, b) for b in (batch, changed))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_two_tokenizers_that_are_one_give_the_soft_loss():
    """Oracle: numpy's soft term: both sides have the same tokens, aligned one to one, and share the whole
    vocabulary. Without an exact token, sorted takes the place of matched, which is 0.
    """
    batch = whole_batch()
    beside = np.where(batch["segment_ids"] > 0, np.arange(T), -1).astype(np.int32)
    batch |= {
        "teacher_tokens": batch["tokens"],
        "teacher_tokens_segment_ids": batch["segment_ids"],
        "teacher_index": beside,
        "exact": np.ones((B, T), bool),
    }
    shared = (tuple(range(VOCAB)),) * 2
    made = objective(weights=dict(matched=0.5, sorted=0.5), shared=shared)
    loss = jax.jit(functools.partial(made.loss, teacher_params=TEACHER[1]))
    soft, _ = expected_logit_terms(batch, forward_kl)
    _, found = loss(STUDENT[1], batch)
    np.testing.assert_allclose(found["matched"], soft, rtol=1e-4)
    assert found["sorted"] == 0
    _, found = loss(STUDENT[1], batch | {"exact": np.zeros((B, T), bool)})
    assert found["matched"] == 0 and found["sorted"] > 0


def test_weights_of_targets_add_up_to_one_whatever_they_are():
    """Oracle: by hand: a batch whose loss weights add up to less than 1, and one without a target."""
    batch = {"loss_mask": np.array([[True, True, False]]), "normalizer": np.float32(0.5)}
    batch["loss_weights"] = np.float32([[0.125, 0.375, 0.0]])
    np.testing.assert_array_equal(token_weights(batch), [[0.25, 0.75, 0]])
    none = {"loss_mask": np.zeros((1, 3), bool), "normalizer": np.float32(0)}
    np.testing.assert_array_equal(token_weights(none), [[0, 0, 0]])


def test_hard_alone_asks_no_teacher():
    """Oracle: numpy's cross-entropy, without a teacher; terms of weight 0 are skipped."""
    batch = whole_batch()
    made = objective(weights=dict(hard=2.0, soft=0.0, hidden=0.0), teacher=None)
    loss, metrics = jax.jit(made.loss)(STUDENT[1], batch, teacher_params={})
    _, hard = expected_logit_terms(batch, forward_kl)
    np.testing.assert_allclose(loss, 2 * hard, rtol=1e-4)
    assert set(metrics) == {"hard"}


def test_weights_of_tokens_add_up_over_micro_batches():
    """Oracle: numpy's weighted mean of random numbers over the whole batch; 0 where a mask leaves nothing."""
    batch = whole_batch()
    losses = np.float32(np.random.default_rng(0).normal(size=(B, T)))
    parts = (
        {name: x[row : row + 1] if np.ndim(x) else x for name, x in batch.items()}
        for row in range(B)
    )
    total = sum((token_weights(part) * losses[row]).sum() for row, part in enumerate(parts))
    wanted = np.average(losses, weights=np.where(batch["loss_mask"], batch["loss_weights"], 0))
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    nothing = dict(loss_mask=np.zeros((B, T), bool), normalizer=np.float32(0))
    assert (token_weights(batch | nothing) == 0).all()


@pytest.mark.parametrize("weights", [dict(soft=1.0), dict(on_policy=1.0)])
def test_vocabularies_of_two_sizes_are_an_error(weights):
    """Oracle: by hand: the message has the argument and both sizes. No error if both are cut to one size, or
    if no term compares logits one by one.
    """
    teacher = dataclasses.replace(TEACHER[0], vocab_size=VOCAB + 3)
    with pytest.raises(ValueError, match=f"^vocab_size=None .* {VOCAB + 3} .* {VOCAB}: set"):
        objective(teacher=teacher, weights=weights)
    objective(teacher=teacher, weights=weights, vocab_size=VOCAB - 1)
    objective(teacher=teacher, weights=dict(hidden=1.0, hard=1.0))


def test_the_operations_that_a_token_needs():
    """Oracle: by hand: the student's update, and a forward pass of the teacher, whose queries see half of a
    row on average, unless its targets are cached. Modules that predict further tokens are not trained; an
    indexer scores more keys than attention sees.
    """
    # All of its operations are paid three times: a third of an update is a forward pass
    config = dataclasses.replace(SPARSE, indexer_loss="sparse")
    own = {
        frozen: useful_flops(config, 32, trains_mtp=False, frozen=frozen)
        for frozen in (False, True)
    }
    made = Objective(student=config, teacher=config, weights=dict(soft=1.0))
    alone = dataclasses.replace(made, teacher=None)
    for frozen, wanted in own.items():
        assert made.flops_per_token(32, cached=True, frozen=frozen) == wanted
        assert alone.flops_per_token(32, cached=False, frozen=frozen) == wanted
        found = made.flops_per_token(32, cached=False, frozen=frozen)
        np.testing.assert_allclose(found, wanted + own[False] / 3)


def test_the_penalty_is_shared_by_micro_batches():
    """Oracle: by hand: half of 9 + 16, a quarter of it in each of four parts, times its weight."""
    params = {"w": jnp.float32([[3], [4]])}
    for parts in (1, 4):
        made = Objective(student=None, teacher=None, weights=dict(l2=2.0), micro_batches=parts)
        loss, metrics = made.loss(params, {}, teacher_params={})
        assert (loss, metrics["l2"]) == (25 / parts, 12.5 / parts)
    made = Objective(student=None, teacher=None, weights={})
    assert made.micro_batches == made.relation_heads == 1


def test_tokens_of_two_tokenizers_are_compared_where_their_targets_are_aligned():
    """Oracle: by hand: the targets of the first row are aligned with the teacher's places 1, 2 and none, the
    second exactly alone; those of the second row with 0, which nothing predicts, 3 and 1, all of them exact.
    The last position has no target of its own.
    """
    index = np.array([[9, 1, 2, -1], [9, 0, 3, 1]])
    exact = np.array([[1, 0, 1, 1], [0, 1, 1, 1]], bool)
    mask = np.array([[1, 1, 1, 0]] * 2, bool)
    batch = dict(teacher_index=index, exact=exact, loss_mask=mask, normalizer=np.float32(2))
    batch |= dict(temperature=TEMPERATURE, targets=index)
    shared = (np.arange(3), np.arange(2, 5))
    made = objective(weights=dict(matched=0.5, sorted=0.25), shared=shared)
    terms = made._terms(batch)
    np.testing.assert_array_equal(terms["matched"].share, [[0, 0.5, 0, 0], [0, 0.5, 0.5, 0]])
    np.testing.assert_array_equal(terms["sorted"].share, [[0.5, 0, 0, 0], [0, 0, 0, 0]])
    assert (terms["matched"].weight, terms["sorted"].weight) == (0.5, 0.25)


@pytest.mark.parametrize("cached", [False, True])
def test_terms_have_the_divergence_and_the_temperature_that_were_asked(cached):
    """Oracle: the losses themselves, called with them."""
    rng = np.random.default_rng(0)
    logits, teacher = (jnp.float32(rng.normal(size=(4, 7))) for _ in range(2))
    kind = dict(divergence="jsd", beta=0.3)
    made = objective(weights=dict(soft=0.5, matched=0.5), shared=((0, 1), (2, 3)), **kind)
    mask = np.ones((1, 4), bool)
    batch = dict(loss_mask=mask, normalizer=np.float32(4), temperature=TEMPERATURE, exact=mask)
    batch["teacher_index"] = np.arange(4)[None]
    wanted = soft_loss(logits, teacher, TEMPERATURE, **kind)
    if cached:
        top_k = TopK(*top_k_logprobs(teacher, jnp.eye(7), 3, TEMPERATURE))
        batch |= {name: array[None] for name, array in zip(CACHED, top_k, strict=True)}
        wanted = top_k_loss(logits, top_k, TEMPERATURE, **kind)[0]
        teacher = top_k
    terms = made._terms(batch)
    found = terms["soft"].loss(logits, teacher)
    np.testing.assert_allclose(found[0] if cached else found, wanted, rtol=1e-6)
    assert (terms["soft"].against is not None) == cached
    if not cached:
        shared = jnp.array([0, 1]), jnp.array([2, 3])
        wanted = shared_vocabulary_loss(logits, teacher, TEMPERATURE, shared, **kind)
        np.testing.assert_allclose(terms["matched"].loss(logits, teacher), wanted, rtol=1e-6)


def test_features_are_weighed_by_token_and_relations_averaged():
    """Oracle: the losses themselves, of each of queries, keys and values with their heads side by side; the
    mean over the batch's weights.
    """
    rng = np.random.default_rng(0)

    def reading(width, heads):
        layers = jnp.float32(rng.normal(size=(2, B, T, width)))
        attention = [jnp.float32(rng.normal(size=(B, T, heads, 4))) for _ in range(3)]
        return ForwardOutputs(None, layers, attention)

    student, teacher = reading(6, 2), reading(8, 3)
    batch = rows(0, weighted=True)
    projections = init_projections(jax.random.key(0), 2, 6, 8)
    made = objective(weights=dict(hidden=0.5, relations=0.25))
    loss, means = made._features({PROJECTIONS: projections}, student, teacher, batch)
    weights = batch["loss_weights"] / batch["normalizer"]
    hidden = hidden_state_loss(student.layers, teacher.layers, projections)
    np.testing.assert_allclose(means["hidden"], (weights * hidden).sum(), rtol=1e-5)
    flat = [[x.reshape(B, T, -1) for x in each.attention] for each in (student, teacher)]
    losses = [
        relation_loss(*pair, batch["segment_ids"], relation_heads=2)
        for pair in zip(*flat, strict=True)
    ]
    wanted = (weights * np.mean(losses, axis=0)).sum()
    np.testing.assert_allclose(means["relations"], wanted, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * means["hidden"] + 0.25 * wanted, rtol=1e-5)


def test_the_samples_of_a_student_have_a_divergence_of_their_own(monkeypatch):
    """Oracle: by hand: the term of the rows that were sampled, read by both, with the batch's temperature."""
    seen = {}
    monkeypatch.setattr(module, "mean_over_tokens", lambda *given: seen.update(given=given))
    made = objective(weights=dict(on_policy=0.4), on_policy_divergence="jsd", on_policy_beta=0.3)
    read = lambda config, params, rows: ForwardOutputs((config, params, sorted(rows)))  # noqa: E731
    monkeypatch.setattr(Objective, "_read", lambda self, *given: read(*given))
    sampled = {SAMPLED + name: array for name, array in rows(1, weighted=False).items()}
    batch = sampled | {"temperature": TEMPERATURE, "tokens": 0}
    made._on_policy({OWN: "own", PROJECTIONS: None}, batch, "theirs")
    terms, student, teacher = seen["given"]
    names = sorted(rows(1, weighted=False))
    assert student == (STUDENT[0], "own", names) and teacher == (TEACHER[0], "theirs", names)
    assert terms["on_policy"].weight == 0.4
    logits = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 7)))
    found = terms["on_policy"].loss(*logits)
    wanted = soft_loss(*logits, TEMPERATURE, divergence="jsd", beta=0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
