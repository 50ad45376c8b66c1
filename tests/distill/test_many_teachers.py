"""The KL to several teachers on the student's samples, against torch over the whole vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.distill.chunks import Outputs
from deepseek_jax.distill.many_teachers import teacher_kl
from deepseek_jax.parallel import make_mesh

B, T, V, WIDTH = 8, 6, 37, 8
WIDTHS = (12, 5)  # of two teachers
WEIGHTS = (1.0, 0.3)
TEMPERATURE = 0.7
NEAR = dict(rtol=2e-5, atol=2e-6)  # float32, over sums of 37 products and 20 tokens


def outputs(width, seed):
    """Outputs whose logits have a standard deviation of about 2."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, T, width)) * 2 / width**0.5
    return Outputs(jnp.float32(hidden), jnp.float32(rng.normal(size=(V, width))))


def samples(seed):
    """(share float32[b t] with zeros, (ids, log-probabilities that a sampler claims)) of one teacher."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.integers(1, T + 1, size=(B, 1))
    logprobs = np.float32(-rng.uniform(0, 4, size=(B, T)))
    return np.float32(mask / mask.sum()), (np.int32(rng.integers(0, V, (B, T))), logprobs)


# The student reads each teacher's samples apart: hidden states of its own, and one head
STUDENTS = [outputs(WIDTH, seed) for seed in (0, 1)]
TEACHERS = [outputs(width, 2 + i) for i, width in enumerate(WIDTHS)]
SAMPLES = [samples(4), samples(5)]


def total(hidden, head, teachers=TEACHERS, taken=SAMPLES, **options):
    """sum_i w_i KL_i, and each teacher's metrics. hidden: one array a teacher."""
    loss, metrics = 0.0, []
    for own, teacher, (share, sampled), weight in zip(
        hidden, teachers, taken, WEIGHTS, strict=True
    ):
        options |= dict(weight=weight, temperature=TEMPERATURE)
        kl, found = teacher_kl(Outputs(own, head), teacher, share, sampled, **options)
        loss, metrics = loss + kl, [*metrics, found]
    return loss, metrics


def with_gradient(*arguments, **options):
    function = functools.partial(total, **options)
    return jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(*arguments)


def hidden_and_head():
    return [student.hidden for student in STUDENTS], STUDENTS[0].head


@functools.cache
def by_torch():
    """(loss, [{kl, entropy, sampler_gap}], (gradients in hidden, in head)): a loop over tokens in float64."""
    hidden, head = hidden_and_head()
    hidden = [torch.tensor(np.float64(x), requires_grad=True) for x in hidden]
    head = torch.tensor(np.float64(head), requires_grad=True)
    loss, metrics = 0.0, []
    for own, teacher, (share, (ids, claimed)), weight in zip(
        hidden, TEACHERS, SAMPLES, WEIGHTS, strict=True
    ):
        theirs = np.float64(teacher.hidden) @ np.float64(teacher.head).T
        sums = dict.fromkeys(("kl", "entropy", "sampler_gap"), 0.0)
        for b, t in np.ndindex(B, T):
            q = torch.softmax(head @ own[b, t] / TEMPERATURE, 0)
            p = torch.softmax(torch.tensor(theirs[b, t]) / TEMPERATURE, 0)
            sums["kl"] += share[b, t] * (q * torch.log(q / p)).sum()
            sums["entropy"] -= share[b, t] * (q * torch.log(q)).sum().item()
            gap = abs(torch.log(q[ids[b, t]]).item() - claimed[b, t])
            sums["sampler_gap"] += share[b, t] * gap
        loss = loss + weight * sums["kl"]
        metrics.append(sums | {"kl": sums["kl"].item()})
    loss.backward()
    return loss.item(), metrics, ([x.grad.numpy() for x in hidden], head.grad.numpy())


def assert_near(found, wanted):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **NEAR), found, wanted)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_loss_of_two_teachers_and_its_gradient_are_those_of_a_loop(chunk_size):
    """Oracle: torch's softmax and autograd in float64, token by token over all of the vocabulary. Teachers
    are of widths 12 and 5, the student's is 8; 48 tokens in chunks of 7 need filling.
    """
    wanted, metrics, gradient = by_torch()
    (loss, found), ours = with_gradient(*hidden_and_head(), chunk_size=chunk_size)
    assert_near(loss, wanted)
    assert_near(found, metrics)
    assert_near(ours, gradient)


def test_eight_devices_give_the_loss_and_the_gradient_of_one():
    """Oracle: the loop of torch, with tokens split over data, context and tensor."""
    wanted, metrics, gradient = by_torch()
    with jax.set_mesh(make_mesh(data=2, context=2, tensor=2)):
        (loss, found), ours = jax.jit(with_gradient)(*hidden_and_head())
    assert_near(loss, wanted)
    assert_near(found, metrics)
    assert_near(ours, gradient)


def test_the_order_of_rows_changes_nothing():
    """Oracle: invariant: the same loss, and the gradient of the rows in their order, for rows permuted."""
    hidden, head = hidden_and_head()
    (loss, _), (dhidden, dhead) = with_gradient(hidden, head)
    order = np.random.default_rng(6).permutation(B)
    teachers = [Outputs(teacher.hidden[order], teacher.head) for teacher in TEACHERS]
    taken = [(share[order], (ids[order], logprobs[order])) for share, (ids, logprobs) in SAMPLES]
    permuted = with_gradient([x[order] for x in hidden], head, teachers=teachers, taken=taken)
    assert_near(permuted[0][0], loss)
    assert_near(permuted[1], ([x[order] for x in dhidden], dhead))


def test_a_teacher_that_is_the_student_has_nothing_to_teach():
    """Oracle: by hand: a KL of 0, and a gradient of 0 up to rounding, with samples of its own."""
    student = STUDENTS[0]
    share, (ids, _) = SAMPLES[0]
    logits = jnp.einsum("btd,vd->btv", student.hidden, student.head) / TEMPERATURE
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]

    def loss(student):
        how = dict(weight=1.0, temperature=TEMPERATURE)
        return teacher_kl(student, jax.lax.stop_gradient(student), share, (ids, own), **how)

    (kl, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(student)
    assert kl == metrics["kl"] == 0 and metrics["sampler_gap"] < 1e-6
    assert all(np.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(gradient))
