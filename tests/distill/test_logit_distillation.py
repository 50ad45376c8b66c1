"""Soft and hard targets against torch, by hand, and without a [tokens, vocabulary] array."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.distill.logit_distillation import (
    dense_distillation,
    hard_loss,
    soft_loss,
    top_k_distillation,
)
from deepseek_jax.distill.top_k import TopK, top_k_logprobs
from tests.distill.test_divergences import ALL, loop_jsd

M, D, WIDER, V = 23, 8, 12, 37


def inputs(m=M, d=D, v=V, seed=0):
    """(hidden, head, targets), (the teacher's hidden, head); logits of standard deviation about 2."""
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(m, d)) * 2 / d**0.5, rng.normal(size=(v, d))
    teacher = rng.normal(size=(m, WIDER)) * 2 / WIDER**0.5, rng.normal(size=(v, WIDER))
    student, teacher = jax.tree.map(jnp.float32, (student, teacher))
    return (*student, jnp.asarray(rng.integers(0, v, m), jnp.int32)), teacher


def test_the_soft_loss_by_hand():
    """Oracle: by hand. Logits log 9 and 0 at temperature 2 are 3 : 1; the student's 0, 0 are 1 : 1 at any:
    4 (3/4 log(3/2) + 1/4 log(1/2)) forward, 4 (1/2 log(2/3) + 1/2 log 2) reverse; gradient T (q - p) = +-1/2.
    1e-6: rounding.
    """
    teacher, student = jnp.array([np.log(9.0), 0.0]), jnp.zeros(2)
    forward = soft_loss(student, teacher, divergence="forward_kl", temperature=2.0)
    reverse = soft_loss(student, teacher, divergence="reverse_kl", temperature=2.0)
    np.testing.assert_allclose(forward, 3 * np.log(1.5) - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(reverse, 2 * np.log(4 / 3), rtol=1e-6)
    gradient = jax.grad(soft_loss)(student, teacher, divergence="forward_kl", temperature=2.0)
    np.testing.assert_allclose(gradient, [-0.5, 0.5], rtol=1e-6)


def test_the_scale_of_gradients_does_not_follow_the_temperature():
    """Oracle: the limit of arXiv:1503.02531, eq. 4, times T^2: (z - v) / V for centred logits. At T = 100 and
    logits of order 1 the next term is of order 1/100: 3%.
    """
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 10))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    gradient = jax.grad(soft_loss)(
        jnp.float32(student), jnp.float32(teacher), divergence="forward_kl", temperature=100.0
    )
    wanted = (student - teacher) / 10
    np.testing.assert_allclose(gradient, wanted, atol=0.03 * np.abs(wanted).max())


def dense_oracle(student, teacher, *, divergence, temperature, beta):
    """Soft loss, hard loss, and gradients of their sum in hidden and head: torch in float64."""
    hidden, head, targets = (torch.tensor(np.asarray(x)) for x in student)
    hidden, head = (x.double().requires_grad_() for x in (hidden, head))
    teacher_hidden, teacher_head = (torch.tensor(np.asarray(x)).double() for x in teacher)
    logits = hidden @ head.T
    logq = torch.log_softmax(logits / temperature, -1)
    logp = torch.log_softmax(teacher_hidden @ teacher_head.T / temperature, -1)
    kl_div = torch.nn.functional.kl_div  # kl_div(log b, log a) is KL(a || b)
    if divergence == "forward_kl":
        soft = kl_div(logq, logp, reduction="none", log_target=True)
    elif divergence == "reverse_kl":
        soft = kl_div(logp, logq, reduction="none", log_target=True)
    else:
        logm = torch.log(beta * logp.exp() + (1 - beta) * logq.exp())
        of_teacher = kl_div(logm, logp, reduction="none", log_target=True)
        of_student = kl_div(logm, logq, reduction="none", log_target=True)
        soft = beta * of_teacher + (1 - beta) * of_student
    soft = temperature**2 * soft.sum(-1)
    hard = torch.nn.functional.cross_entropy(logits, targets.long(), reduction="none")
    (soft + hard).sum().backward()
    return soft.detach(), hard.detach(), hidden.grad, head.grad


def values_and_gradients(loss, student, *teacher, **settings):
    def total(hidden, head):
        soft, hard, *_ = loss(hidden, head, student[2], *teacher, **settings)
        return (soft + hard).sum(), (soft, hard)

    gradients, values = jax.grad(total, (0, 1), has_aux=True)(*student[:2])
    return *values, *gradients


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("divergence, beta", ALL)
def test_dense_values_and_gradients_are_those_of_the_full_softmax(divergence, beta, chunk_size):
    """Oracle: torch's kl_div, cross_entropy and autograd in float64; 2e-5: float32, over sums of 23 rows."""
    student, teacher = inputs()
    settings = dict(divergence=divergence, temperature=1.7, beta=beta)
    found = values_and_gradients(
        dense_distillation, student, *teacher, **settings, chunk_size=chunk_size
    )
    for ours, theirs in zip(found, dense_oracle(student, teacher, **settings), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_teacher_logits_do_as_well_as_hidden_states():
    """Oracle: the same loss from the hidden states and head that made the logits; 1e-5: rounding."""
    student, (teacher_hidden, teacher_head) = inputs()
    settings = dict(divergence="jsd", temperature=2.0, beta=0.3, chunk_size=5)
    logits = teacher_hidden @ teacher_head.T
    ours = values_and_gradients(dense_distillation, student, logits, **settings)
    theirs = values_and_gradients(
        dense_distillation, student, teacher_hidden, teacher_head, **settings
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def bucket_oracle(student, teacher, k, *, divergence, temperature, beta):
    """The loss over k + 1 buckets: a loop over tokens, sets of ids and sums of probabilities, in float64."""
    hidden, head, _ = (np.asarray(x, float) for x in student)
    teacher_hidden, teacher_head = (np.asarray(x, float) for x in teacher)
    losses = []
    for h, g in zip(hidden, teacher_hidden, strict=True):
        q, p = np.exp(head @ h / temperature), np.exp(teacher_head @ g / temperature)
        q, p = q / q.sum(), p / p.sum()
        kept = np.argsort(-p)[:k]
        p, q = (np.append(x[kept], np.delete(x, kept).sum()) for x in (p, q))
        if divergence == "forward_kl":
            losses.append((p * np.log(p / q)).sum())
        elif divergence == "reverse_kl":
            losses.append((q * np.log(q / p)).sum())
        else:
            losses.append(loop_jsd(np.log(p), np.log(q), beta))
    return temperature**2 * np.array(losses)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_top_k_is_the_divergence_of_buckets(divergence, beta):
    """Oracle: the numpy loop; 1e-5: float32 rounding."""
    student, teacher = inputs()
    settings = dict(divergence=divergence, temperature=1.7, beta=beta)
    cache = top_k_logprobs(*teacher, 5, 1.7)
    soft, _, _ = top_k_distillation(*student, cache, **settings, chunk_size=4)
    np.testing.assert_allclose(
        soft, bucket_oracle(student, teacher, 5, **settings), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("divergence, beta", ALL)
def test_the_dense_loss_lies_between_the_buckets_and_their_bound(divergence, beta):
    """Oracle: dense_distillation, over 2,000 tokens at another temperature than 1; 1e-4: rounding of both."""
    student, teacher = inputs(m=2000)
    settings = dict(divergence=divergence, temperature=2.5, beta=beta)
    dense, _ = dense_distillation(*student, *teacher, **settings)
    cache = top_k_logprobs(*teacher, 6, 2.5)
    soft, _, bound = top_k_distillation(*student, cache, **settings)
    assert (soft <= dense + 1e-4).all() and (dense <= soft + bound + 1e-4).all()
    assert (dense - soft).mean() > 0.1


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("divergence, beta", ALL)
def test_top_k_of_all_tokens_is_the_dense_loss(divergence, beta, chunk_size):
    """Oracle: dense_distillation, values and gradients, and a bound of 0; 2e-5: float32 rounding."""
    student, teacher = inputs()
    settings = dict(divergence=divergence, temperature=0.8, beta=beta, chunk_size=chunk_size)
    cache = top_k_logprobs(*teacher, V, 0.8)
    ours = values_and_gradients(top_k_distillation, student, cache, **settings)
    theirs = values_and_gradients(dense_distillation, student, *teacher, **settings)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    assert (top_k_distillation(*student, cache, **settings)[2] == 0).all()


def test_top_k_gradient_leaves_the_shape_of_the_tail_alone():
    """Oracle: by hand: the gradient of forward KL is q_i - p_i in the logit of a kept token and
    q_i (Q - P) / Q in that of a dropped one. The head is the identity here, so that hidden states are logits.
    """
    v, k = 6, 2
    logits = jnp.float32(np.random.default_rng(3).normal(size=(1, v)))
    p = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    cache = TopK(jnp.array([[0, 1]]), jnp.log(jnp.float32(p[None, :k])), jnp.float32([0.3]))

    def value(hidden):
        targets = jnp.zeros(1, jnp.int32)
        settings = dict(divergence="forward_kl", temperature=1.0)
        return top_k_distillation(hidden, jnp.eye(v), targets, cache, **settings)[0].sum()

    q = np.exp(np.asarray(logits[0], float))
    q /= q.sum()
    wanted = np.where(np.arange(v) < k, q - p, q * (q[k:].sum() - 0.3) / q[k:].sum())
    np.testing.assert_allclose(jax.grad(value)(logits)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["hidden", "logits", "top_k"])
@pytest.mark.parametrize("divergence, beta", ALL[:3])
def test_the_teacher_gets_no_gradient(kind, divergence, beta):
    """Oracle: exactly 0 in all that the teacher gives, and not 0 in the student's hidden states and head."""
    student, teacher = inputs()
    settings = dict(divergence=divergence, temperature=1.0, beta=beta)
    if kind == "hidden":
        loss, from_teacher = dense_distillation, teacher
    elif kind == "logits":
        loss, from_teacher = dense_distillation, (teacher[0] @ teacher[1].T,)
    else:
        loss, from_teacher = top_k_distillation, (top_k_logprobs(*teacher, 4),)

    def total(hidden, head, from_teacher):
        return loss(hidden, head, student[2], *from_teacher, **settings)[0].sum()

    *of_student, of_teacher = jax.grad(total, (0, 1, 2), allow_int=True)(*student[:2], from_teacher)
    assert all(jnp.abs(g).max() > 1e-3 for g in of_student)
    floats = [g for g in jax.tree.leaves(of_teacher) if g.dtype != jax.dtypes.float0]
    assert floats and all((g == 0).all() for g in floats)


def test_a_teacher_of_certainty_stays_finite():
    """Oracle: by hand: logits +-1000: its KL to the certain student that disagrees is 2000, to itself 0; the
    tail dropped is an exact 0, and every gradient finite.
    """
    head = jnp.array([[1.0], [-1.0], [-1.0]])
    hidden, teacher = jnp.array([[1000.0], [-1000.0]]), jnp.array([[1000.0], [1000.0]])
    student = (hidden, head, jnp.zeros(2, jnp.int32))
    cache = top_k_logprobs(teacher, head, 1)
    assert (cache.dropped == 0).all()
    for divergence, beta in ALL:
        settings = dict(divergence=divergence, temperature=1.0, beta=beta)
        soft, hard, *gradients = values_and_gradients(
            top_k_distillation, student, cache, **settings
        )
        dense = values_and_gradients(dense_distillation, student, teacher, head, **settings)
        assert all(np.isfinite(g).all() for g in (soft, *gradients, *dense))
        if divergence == "forward_kl":
            np.testing.assert_allclose(soft, [0, 2000 + np.log(2)], atol=1e-3)
            np.testing.assert_allclose(hard, [0, 2000 + np.log(2)], atol=1e-3)


def test_low_precision_hidden_states_make_float32_losses():
    """Oracle: torch in float64 from the same bfloat16 numbers, whose products are exact in float32: 1e-4."""
    student, teacher = inputs()
    rounded = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), x) for x in (student[:2], teacher)]
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    settings = dict(divergence="forward_kl", temperature=2.0)
    soft, hard = dense_distillation(*rounded[0], student[2], *rounded[1], **settings)
    wanted = dense_oracle((*wide[0], student[2]), wide[1], beta=None, **settings)
    assert soft.dtype == hard.dtype == jnp.float32
    np.testing.assert_allclose(soft, wanted[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(hard, wanted[1], rtol=1e-4, atol=1e-4)


def largest_array(jaxpr):
    """The number of entries of the largest array that a jaxpr, or one inside it, makes."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        sizes += [
            largest_array(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params)
        ]
    return max(sizes)


def big_loss(kind):
    m, v = 1024, 4096
    student, teacher = inputs(m, D, v)
    settings = dict(divergence="jsd", temperature=2.0, beta=0.5, chunk_size=32)
    if kind == "dense":
        return lambda h, w, targets, t: dense_distillation(h, w, targets, *t, **settings)[0], (
            *student,
            teacher,
        )
    cache = top_k_logprobs(*teacher, 8, 2.0, chunk_size=32)
    return lambda h, w, targets, t: top_k_distillation(h, w, targets, t, **settings)[0], (
        *student,
        cache,
    )


@pytest.mark.parametrize("of", ["value", "gradient"])
@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_the_tokens_by_vocabulary_array_never_lives(kind, of):
    """Oracle: the jaxpr makes no array of half the entries of [m v], and the compiler's temporary bytes are
    under a third of the 16 MiB of one in float32 (a chunk of 32 rows holds a dozen of 512 KiB).
    """
    loss, arguments = big_loss(kind)

    def value(*arguments):
        return loss(*arguments).sum()

    function = value if of == "value" else jax.grad(value, (0, 1))
    entries = 1024 * 4096
    assert largest_array(jax.make_jaxpr(function)(*arguments).jaxpr) < entries / 2
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < entries * 4 / 3


def test_the_search_for_large_arrays_finds_one():
    """Oracle: a loss that makes [m v], by hand."""
    student, teacher = inputs(64, D, 128)

    def value(hidden, head):
        logits = teacher[0] @ teacher[1].T
        settings = dict(divergence="forward_kl", temperature=1.0)
        return dense_distillation(hidden, head, student[2], logits, **settings)[0].sum()

    assert largest_array(jax.make_jaxpr(jax.grad(value))(*student[:2]).jaxpr) >= 64 * 128


def test_vocabularies_of_two_sizes_are_an_error():
    """Oracle: the message, by hand."""
    student, (teacher_hidden, teacher_head) = inputs()
    for teacher in ((teacher_hidden, teacher_head[:-1]), (jnp.zeros((M, V + 1)),)):
        with pytest.raises(ValueError, match="config.loss.vocab_size"):
            dense_distillation(*student, *teacher, divergence="forward_kl", temperature=1.0)


def test_hard_loss_is_cross_entropy_whatever_the_temperature():
    """Oracle: torch's cross_entropy in float64; 1e-5: rounding."""
    student, teacher = inputs()
    logits = student[0] @ student[1].T
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).double(),
        torch.tensor(np.asarray(student[2])).long(),
        reduction="none",
    )
    hot = dense_distillation(*student, *teacher, divergence="forward_kl", temperature=5.0)[1]
    np.testing.assert_allclose(hot, wanted, rtol=1e-5)
    np.testing.assert_allclose(hard_loss(logits, student[2]), wanted, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("kind", ["hidden", "logits", "top_k"])
def test_a_weighted_total_has_the_gradient_of_the_same_sum(kind, chunk_size):
    """Oracle: the sum of weight times loss over tokens, from the losses that are recomputed, times 3; with a
    token that counts nothing, and 23 in chunks of 4, which need filling. 1e-5: float32, in another order.
    """
    student, teacher = inputs()
    loss = top_k_distillation if kind == "top_k" else dense_distillation
    if kind == "logits":
        teacher = (teacher[0] @ teacher[1].T,)
    elif kind == "top_k":
        teacher = (top_k_logprobs(*teacher, 5, 1.7),)
    settings = dict(divergence="jsd", temperature=1.7, beta=0.3, chunk_size=chunk_size)
    weights = np.float32(np.random.default_rng(1).uniform(0.1, 1, size=(2, M)))
    weights[:, 3] = 0.0

    def summed(hidden, head):
        soft, hard, *_ = loss(hidden, head, student[2], *teacher, **settings)
        return 3 * (weights[0] * soft + weights[1] * hard).sum(), (soft, hard)

    def weighed(hidden, head):
        total, soft, hard, *_ = loss(
            hidden, head, student[2], *teacher, weights=tuple(weights), **settings
        )
        return 3 * total.sum(), (soft, hard)

    ours, theirs = (
        jax.value_and_grad(f, (0, 1), has_aux=True)(*student[:2]) for f in (weighed, summed)
    )
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_temporaries_of_a_weighted_total_grow_with_the_tokens_and_not_with_the_logits():
    """Oracle: the compiler's temporary bytes at chunks of 32 tokens, 1,024 tokens and twice as many: what is
    added is under a quarter of the 16 MiB of float32 logits of 1,024 tokens.
    """

    def temporaries(m, v=4096):
        student, teacher = inputs(m, D, v)

        def value(hidden, head):
            settings = dict(divergence="forward_kl", temperature=2.0, chunk_size=32)
            weights = (jnp.ones(m), jnp.ones(m))
            total, *_ = dense_distillation(
                hidden, head, student[2], *teacher, weights=weights, **settings
            )
            return total.sum()

        compiled = jax.jit(jax.value_and_grad(value, (0, 1))).lower(*student[:2]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(1024), temporaries(2048)
    assert small < 4096 * 1024 * 4 / 3
    assert large - small < 4096 * 1024 * 4 / 4
