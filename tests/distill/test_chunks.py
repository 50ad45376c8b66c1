"""Tokens a few at a time: the means of terms with their gradient, and rows in order."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from deepseek_jax.distill.chunks import Outputs, Term, map_chunks, mean_over_tokens
from deepseek_jax.distill.divergences import hard_loss, soft_loss
from deepseek_jax.distill.top_k import top_k_logprobs, top_k_loss
from deepseek_jax.ops.platform import size_of
from deepseek_jax.parallel import make_mesh
from tests.distill.test_divergences import ALL, torch_divergence
from tests.quick import others_slow

B, T, D, WIDER, V = 1, 23, 8, 12, 37
WEIGHTS = dict(soft=0.7, hard=0.3)
MESHES = {
    "data, context, tensor": dict(data=2, context=2, tensor=2),
    "pipeline, expert": dict(data=1, pipeline=2, expert=4),
}
SHAPES = {"even": (8, 8), "neither splits": (3, 5), "one token": (1, 1), "t does not": (8, 3)}


def inputs(b=B, t=T, v=V, seed=0):
    """(Outputs of a student, of a teacher, targets); logits of standard deviation about 2."""
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(b, t, D)) * 2 / D**0.5, rng.normal(size=(v, D))
    teacher = rng.normal(size=(b, t, WIDER)) * 2 / WIDER**0.5, rng.normal(size=(v, WIDER))
    student, teacher = (Outputs(*map(jnp.float32, pair)) for pair in (student, teacher))
    return student, teacher, jnp.asarray(rng.integers(0, v, (b, t)), jnp.int32)


def soft_and_hard(targets, *, temperature=1.0, top_k=None, **kind):
    """Both terms, with shares that differ by token and term; token 3 has a share of 0."""
    shares = np.float32(np.random.default_rng(1).uniform(0.1, 1, size=(2, *targets.shape)))
    shares[:, :, 3:4] = 0.0
    loss = functools.partial(soft_loss if top_k is None else top_k_loss, **kind)
    soft = Partial(loss, temperature=temperature)
    return {
        "soft": Term(soft, shares[0], WEIGHTS["soft"], top_k),
        "hard": Term(Partial(hard_loss), shares[1], WEIGHTS["hard"], targets),
    }


def cached(teacher, k, temperature, **options):
    """TopK of Outputs, [b t ...]."""
    b, t, _ = teacher.hidden.shape
    flat = teacher.hidden.reshape(b * t, -1)
    found = top_k_logprobs(flat, teacher.head, k, temperature, **options)
    return jax.tree.map(lambda x: x.reshape(b, t, *x.shape[1:]), found)


def with_gradient(terms, student, teacher=None, chunk_size=None):
    """((total, means), gradient in the student)."""

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def value(student):
        return mean_over_tokens(terms, student, teacher, chunk_size=chunk_size)

    return value(student)


def torch_oracle(student, teacher, targets, terms, *, temperature, **kind):
    """({soft, hard}, gradient of three times the weighted sum): torch in float64, from full logits."""
    hidden, head = (torch.tensor(np.float64(x), requires_grad=True) for x in student)
    logits = hidden @ head.T
    teacher_logits = torch.tensor(np.float64(teacher.hidden) @ np.float64(teacher.head).T)
    logp, logq = (torch.log_softmax(x / temperature, -1) for x in (teacher_logits, logits))
    hard = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(np.int64(targets)).flatten(), reduction="none"
    )
    losses = {
        "soft": temperature**2 * torch_divergence(logp, logq, **kind),
        "hard": hard.reshape(targets.shape),
    }
    means = {n: (torch.tensor(terms[n].share) * loss).sum() for n, loss in losses.items()}
    (3 * sum(WEIGHTS[name] * mean for name, mean in means.items())).backward()
    return {n: mean.item() for n, mean in means.items()}, (hidden.grad, head.grad)


CASES = [(*divergence, chunk_size) for divergence in ALL for chunk_size in (None, 4)]
QUICK = [case for case in CASES if case[-1]] + CASES[:1]


@pytest.mark.parametrize("divergence, beta, chunk_size", others_slow(CASES, *QUICK))
def test_means_and_the_gradient_of_their_sum_are_those_of_full_logits(divergence, beta, chunk_size):
    """Oracle: torch's kl_div, cross_entropy and autograd in float64, of 3 times the total. 23 tokens in
    chunks of 4 need filling. 2e-5: float32, over sums of 23 rows.
    """
    student, teacher, targets = inputs()
    kind = dict(temperature=1.7, divergence=divergence, beta=beta)
    terms = soft_and_hard(targets, **kind)

    def tripled(student):
        total, means = mean_over_tokens(terms, student, teacher, chunk_size=chunk_size)
        return 3 * total, means

    (total, means), gradient = jax.jit(jax.value_and_grad(tripled, has_aux=True))(student)
    wanted, wanted_gradient = torch_oracle(student, teacher, targets, terms, **kind)
    near = dict(rtol=2e-5, atol=2e-5)
    for name, mean in wanted.items():
        np.testing.assert_allclose(means[name], mean, **near)
    weighted = sum(WEIGHTS[name] * mean for name, mean in wanted.items())
    np.testing.assert_allclose(total, 3 * weighted, **near)
    for ours, theirs in zip(gradient, wanted_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, **near)
    undifferentiated = mean_over_tokens(terms, student, teacher, chunk_size=chunk_size)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), undifferentiated[1], means
    )


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_cache_of_all_tokens_gives_the_gradient_of_the_teacher_at_hand(chunk_size):
    """Oracle: the dense term, values and gradients, and a bound of 0; 2e-5: float32 rounding."""
    student, teacher, targets = inputs()
    kind = dict(temperature=0.8, divergence="jsd", beta=0.3)
    top_k = soft_and_hard(targets, **kind, top_k=cached(teacher, V, 0.8))
    (total, means), gradient = with_gradient(top_k, student, chunk_size=chunk_size)
    dense = with_gradient(soft_and_hard(targets, **kind), student, teacher, chunk_size)
    assert means.pop("soft_bound") == 0
    for ours, theirs in zip(
        jax.tree.leaves(((total, means), gradient)), jax.tree.leaves(dense), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_the_teacher_and_the_means_give_no_gradient(kind):
    """Oracle: by hand: the gradient of the total is exactly 0 in the teacher's arrays and not 0 in the
    student's hidden states and head; the gradient of the means is 0 in the student.
    """
    student, teacher, targets = inputs()
    taught = teacher if kind == "dense" else cached(teacher, 4, 1.0)

    def mean(student, taught):
        top_k = None if kind == "dense" else taught
        terms = soft_and_hard(targets, divergence="forward_kl", top_k=top_k)
        return mean_over_tokens(terms, student, taught if top_k is None else None)

    def gradient(of):
        return jax.grad(of, (0, 1), allow_int=True)(student, taught)

    of_student, of_teacher = gradient(lambda *arrays: mean(*arrays)[0])
    assert all(jnp.abs(g).max() > 1e-3 for g in of_student)
    of_means = gradient(lambda *arrays: mean(*arrays)[1]["soft"])
    silent = [g for g in jax.tree.leaves((of_teacher, of_means)) if g.dtype != jax.dtypes.float0]
    assert len(silent) > 2 and all((g == 0).all() for g in silent)


def test_low_precision_hidden_states_make_float32_means():
    """Oracle: torch in float64 from the same bfloat16 numbers, whose products are exact in float32: 1e-4. The
    gradient has the dtype of its array.
    """
    student, teacher, targets = inputs()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (student, teacher))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    kind = dict(temperature=2.0, divergence="forward_kl")
    terms = soft_and_hard(targets, **kind)
    (_, means), gradient = with_gradient(terms, *low)
    wanted, _ = torch_oracle(*wide, targets, terms, **kind)
    for name, mean in wanted.items():
        assert means[name].dtype == jnp.float32
        np.testing.assert_allclose(means[name], mean, rtol=1e-4)
    assert all(g.dtype == jnp.bfloat16 for g in gradient)


SPLITS = [(mesh, shape) for mesh in MESHES for shape in SHAPES]


@pytest.mark.parametrize(
    ("mesh", "shape"), others_slow(SPLITS, *SPLITS[:4], ("pipeline, expert", "neither splits"))
)
def test_the_tokens_of_all_devices_have_the_means_of_one(mesh, shape):
    """Oracle: the function without a mesh, gradients too, so that the head's, summed over devices, counts
    once. 1e-5: float32 sums in another order.
    """
    student, teacher, targets = inputs(*SHAPES[shape])
    terms = soft_and_hard(targets, divergence="forward_kl")
    compiled = jax.jit(functools.partial(with_gradient, terms, chunk_size=2))
    with jax.set_mesh(make_mesh(**MESHES[mesh])):
        ours = compiled(student, teacher)
    theirs = compiled(student, teacher)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_head_is_summed_once_for_all_chunks():
    """Oracle: the compiled program has one sum of the head's shape over devices, outside of the loop."""
    student, teacher, targets = inputs(8, 64)
    terms = soft_and_hard(targets, divergence="forward_kl")
    compiled = jax.jit(functools.partial(with_gradient, terms, chunk_size=2))
    with jax.set_mesh(make_mesh(**MESHES["data, context, tensor"])):
        text = compiled.lower(student, teacher).compile().as_text()
    assert "while(" in text  # there are chunks
    sums = [line for line in text.splitlines() if " all-reduce(" in line and f"[{V},{D}]" in line]
    assert len(sums) == 1 and "while" not in sums[0].split("op_name")[-1], sums


def largest_array(jaxpr):
    """The number of entries of the largest array that a jaxpr, or a jaxpr in it, computes."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        sizes += [
            largest_array(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params)
        ]
    return max(sizes)


@pytest.mark.parametrize("of", ["value", "gradient"])
@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_the_tokens_by_vocabulary_array_never_lives(kind, of):
    """Oracle: the jaxpr makes no array of half the entries of [m v], and the compiler's temporary bytes are
    under a third of the 16 MiB of one in float32 (a chunk of 32 rows holds a dozen of 512 KiB).
    """
    m, v = 1024, 4096
    student, teacher, targets = inputs(1, m, v)
    top_k = None
    if kind == "top_k":
        top_k, teacher = cached(teacher, 8, 2.0, chunk_size=32), None
    terms = soft_and_hard(targets, temperature=2.0, divergence="jsd", beta=0.5, top_k=top_k)

    def value(student, teacher):
        return mean_over_tokens(terms, student, teacher, chunk_size=32)[0]

    function = value if of == "value" else jax.grad(value)
    assert largest_array(jax.make_jaxpr(function)(student, teacher).jaxpr) < m * v / 2
    memory = jax.jit(function).lower(student, teacher).compile().memory_analysis()
    assert memory.temp_size_in_bytes < m * v * 4 / 3


def test_the_search_for_large_arrays_finds_one():
    """Oracle: a loss that makes [m v], by hand."""
    student, teacher, _ = inputs(1, 64, 128)

    def value(hidden, head):
        logits = teacher.hidden @ teacher.head.T
        return soft_loss(hidden @ head.T, logits, 1.0, divergence="forward_kl").sum()

    assert largest_array(jax.make_jaxpr(jax.grad(value))(*student).jaxpr) >= 64 * 128


def test_temporaries_grow_with_the_tokens_and_not_with_their_logits():
    """Oracle: the compiler's temporary bytes at chunks of 32 tokens: 1,024 more tokens add less than a
    quarter of the 16 MiB of their float32 logits.
    """

    def temporaries(m, v=4096):
        student, teacher, targets = inputs(1, m, v)
        terms = soft_and_hard(targets, temperature=2.0, divergence="forward_kl")
        compiled = jax.jit(functools.partial(with_gradient, terms, chunk_size=32))
        compiled = compiled.lower(student, teacher).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(1024), temporaries(2048)
    assert small < 4096 * 1024 * 4 / 3
    assert large - small < 4096 * 1024 * 4 / 4


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 10])
def test_trees_of_rows_come_back_in_order(chunk_size):
    """Oracle: the same arithmetic on whole arrays, exactly; 7 rows in chunks of 3 need filling."""
    a, b = jnp.arange(7.0), jnp.arange(14, dtype=jnp.int32).reshape(7, 2)

    def of_chunk(arrays):
        return {"twice": 2 * arrays["a"], "sum": (arrays["b"].sum(-1), arrays["b"])}

    found = map_chunks(of_chunk, dict(a=a, b=b), width=5, chunk_size=chunk_size)
    np.testing.assert_array_equal(found["twice"], 2 * a)
    np.testing.assert_array_equal(found["sum"][0], b.sum(-1))
    np.testing.assert_array_equal(found["sum"][1], b)


def test_the_default_chunk_keeps_the_numbers_alive_bounded():
    """Oracle: the rows of each chunk, by hand: 40 rows reach the limit, so 100 rows make 3 chunks of 34."""
    seen = []

    def of_chunk(x):
        seen.append(len(x))
        return x

    map_chunks(of_chunk, jnp.zeros(100), width=size_of("logits_alive") // 40)
    assert set(seen) == {34}
    seen.clear()
    # A row that is beyond the limit is a chunk of its own
    map_chunks(of_chunk, jnp.zeros(3), width=2 * size_of("logits_alive"))
    assert set(seen) == {1}
