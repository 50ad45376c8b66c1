"""Losses over a few tokens at a time, so that no [tokens, vocabulary] array is ever in memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.platform import size_of
from deepseek_jax.parallel.shard import current_mesh
from deepseek_jax.parallel.tokens import token_shards


class Outputs(NamedTuple):
    """The two factors of a model's logits.

    Attributes:
        hidden: [b t d], after the final norm.
        head: [v d].
    """

    hidden: jax.Array
    head: jax.Array


class Term(NamedTuple):
    """A loss of single tokens and its weight.

    Attributes:
        loss: jax.tree_util.Partial: (the student's logits float32[m v], against) -> float32[m], or
            a pair of this array and a dict of metrics, {name: float32[m]}. The arrays that it binds
            are the same for every token.
        share: float32[b t], the weight of each token in the means.
        weight: The weight of the loss's mean in the total.
        against: A tree of [b t ...] that the student's logits are compared with; None for the
            teacher's logits, float32[m v'].
    """

    loss: jax.tree_util.Partial
    share: jax.Array
    weight: float | jax.Array
    against: tuple | jax.Array | None = None


def mean_over_tokens(
    terms: dict[str, Term],
    student: Outputs,
    teacher: Outputs | None = None,
    *,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict]:
    """Compute the weighted sum of several token losses, a chunk of tokens at a time.

    A mean is the sum over tokens of share times loss, or of share times a metric. Tokens are split
    over every axis of the mesh that `jax.set_mesh` sets. Each head is gathered once, and the
    gradient of the student's head is summed once. One pass computes a chunk's value and its
    gradient, so no logits are computed twice. Only the total has a gradient, in the student's
    hidden states and head. Zeros with a share of 0 pad shards and chunks, so a loss must be finite
    on zeros.

    Args:
        terms: By name.
        teacher: None if no term compares with the teacher's logits.
        chunk_size: Tokens that a device processes at a time; by default as many as have
            "logits_alive" logits (ops.platform).

    Returns:
        (total float32[], means {name: float32[]}): the weighted sum of the terms' means, and the
        mean of each term and metric.
    """
    share = {name: term.share for name, term in terms.items()}
    against = {name: term.against for name, term in terms.items()}
    loss = {name: term.loss for name, term in terms.items()}
    weight = {name: term.weight for name, term in terms.items()}
    tokens = _Tokens(None if teacher is None else teacher.hidden, share, against)
    whole = _Whole(None if teacher is None else teacher.head, loss, weight)

    def of_device(hidden, head, tokens, whole):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (hidden, tokens))
        return _sums(chunk_size, flat[0], head, flat[1], whole)

    mesh = current_mesh()
    if mesh is None:
        return of_device(student.hidden, student.head, tokens, whole)
    (hidden, tokens), spec = token_shards(mesh, (student.hidden, tokens))
    return jax.shard_map(
        lambda *arrays: jax.lax.psum(of_device(*arrays), mesh.axis_names),
        in_specs=(spec, PartitionSpec(), spec, PartitionSpec()),
        out_specs=PartitionSpec(),
        # The custom gradient of _sums does not declare over which axes it varies
        check_vma=False,
    )(hidden, student.head, tokens, whole)


class _Tokens(NamedTuple):
    """A loss's inputs for each token; arrays are [b t ...], or [m ...] once flattened."""

    teacher_hidden: jax.Array | None
    share: dict
    against: dict


class _Whole(NamedTuple):
    """What is the same for every token: the teacher's head, and each term's loss and weight."""

    teacher_head: jax.Array | None
    loss: dict
    weight: dict


# A custom gradient, because the loop's gradient would save every chunk's logits or compute them
# again
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(chunk_size, hidden, head, tokens, whole):
    """Compute mean_over_tokens on one device: hidden is [m d], and tokens a tree of [m ...]."""
    chunks = _cut((hidden, tokens), _width(head, whole), chunk_size)
    sums = jax.lax.map(lambda chunk: _chunk_sums(chunk[0], head, chunk[1], whole), chunks)
    return jax.tree.map(lambda x: x.sum(0), sums)


def _sums_and_gradient(chunk_size, hidden, head, tokens, whole):
    with_gradient = jax.value_and_grad(_chunk_sums, argnums=(0, 1), has_aux=True)

    def add(dhead, chunk):
        sums, (dhidden_md, dw) = with_gradient(chunk[0], head, chunk[1], whole)
        return dhead + dw, (sums, dhidden_md)

    chunks = _cut((hidden, tokens), _width(head, whole), chunk_size)
    dhead, (sums, dhidden) = jax.lax.scan(add, jnp.zeros_like(head), chunks)
    # Drop the rows that pad the last chunk
    dhidden = dhidden.reshape(-1, hidden.shape[-1])[: len(hidden)]
    return jax.tree.map(lambda x: x.sum(0), sums), (dhidden, dhead)


def _scaled_gradient(chunk_size, gradients, cotangents):
    # Only the total has a gradient; the means have none
    scale = cotangents[0]
    return *((scale * g).astype(g.dtype) for g in gradients), None, None


_sums.defvjp(_sums_and_gradient, _scaled_gradient)


def _chunk_sums(hidden_md, head, tokens, whole):
    """Compute mean_over_tokens for one chunk, with all of its logits in memory at once."""
    logits_mv = dot("md,vd->mv", hidden_md, head, jnp.float32)
    if whole.teacher_head is not None:
        teacher_mv = dot("md,vd->mv", tokens.teacher_hidden, whole.teacher_head, jnp.float32)
    total, sums = 0.0, {}
    for name, loss in whole.loss.items():
        against = tokens.against[name]
        result = loss(logits_mv, teacher_mv if against is None else against)
        loss_m, metrics = result if isinstance(result, tuple) else (result, {})
        for key, value_m in {name: loss_m, **metrics}.items():
            sums[key] = (tokens.share[name] * value_m).sum()
        total += whole.weight[name] * sums[name]
    return total, sums


def _width(head, whole):
    """Count the numbers in memory per token.

    They are the student's logits and the teacher's. Without a teacher the student's count twice.
    """
    return len(head) + len(head if whole.teacher_head is None else whole.teacher_head)


def map_chunks(of_chunk, arrays, *, width: int, chunk_size: int | None = None):
    """Return of_chunk(arrays), computed a few rows at a time to save memory.

    The gradient recomputes of_chunk instead of saving its intermediate arrays. Rows of zeros pad
    the last chunk, so of_chunk must be finite on them.

    Args:
        of_chunk: A function of arrays in which every row is computed independently.
        arrays: A tree of [m ...], like the result.
        width: Count of numbers that of_chunk computes per row.
        chunk_size: Rows at a time; by default as many as need "logits_alive" numbers
            (ops.platform).
    """
    m = len(jax.tree.leaves(arrays)[0])
    results = jax.lax.map(jax.checkpoint(of_chunk), _cut(arrays, width, chunk_size))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:m], results)


def _cut(arrays, width, chunk_size):
    """Cut a tree of [m ...] into chunks, [chunks, rows ...], padded with zeros."""
    m = len(jax.tree.leaves(arrays)[0])
    chunk = min(chunk_size or max(size_of("logits_alive") // width, 1), m)
    # Chunks of even size need the least padding, and their number stays the same
    chunk = -(-m // -(-m // chunk))

    def cut(x):
        padded = jnp.pad(x, [(0, -m % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    return jax.tree.map(cut, arrays)
