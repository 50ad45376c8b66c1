"""Distillation of the relations between tokens, from a teacher with other heads (MiniLMv2)."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.distill.chunks import map_chunks
from deepseek_jax.distill.divergences import forward_kl
from deepseek_jax.ops.dot import dot


@functools.partial(jax.jit, static_argnames=("relation_heads", "chunk_size"))
def relation_loss(
    student: jax.Array,
    teacher: jax.Array,
    segment_ids: jax.Array,
    *,
    relation_heads: int,
    chunk_size: int | None = None,
) -> jax.Array:
    """Compute KL(teacher || student) of each token's relations, in nats: float32[b t].

    Both sides are cut into relation_heads parts, so neither the number of heads nor their sizes
    need agree. Relations are softmax(a a^T / sqrt(size of a part)), and the loss is their KL
    averaged over parts (MiniLMv2, arXiv:2012.15828). Unlike there, a token is related only to
    itself and to earlier tokens of its document, as a causal model sees no others: the first token
    of a document gives 0. The teacher gets no gradient.

    Args:
        student: [b t x]: queries, keys, values or unit_rms hidden states of one layer, all heads
            side by side.
        teacher: [b t y], the same for the teacher.
        segment_ids: int32[b t], one run of equal numbers per packed document.
        chunk_size: Query positions at a time.

    Raises:
        ValueError: If relation_heads does not divide x and y.
    """
    if student.shape[-1] % relation_heads or teacher.shape[-1] % relation_heads:
        raise ValueError(
            f"relation_heads={relation_heads} must divide both widths, {student.shape[-1]} of the student "
            f"and {teacher.shape[-1]} of the teacher"
        )
    b, t = segment_ids.shape

    def split_heads(x_bty):
        return x_bty.reshape(b, t, relation_heads, -1).swapaxes(0, 1)  # [t b r z], r: relation head

    keys = split_heads(student), split_heads(jax.lax.stop_gradient(teacher))

    def loss_of_chunk(arrays):
        queries, segment_tb, position_t = arrays
        same_tbs = segment_tb[:, :, None] == segment_ids
        seen_tbs = same_tbs & (jnp.arange(t) <= position_t[:, None, None])
        student, teacher = (
            _scores(query, key, seen_tbs) for query, key in zip(queries, keys, strict=True)
        )
        return forward_kl(teacher, student).mean(-1)

    arrays = (keys, segment_ids.T, jnp.arange(t))
    width = 2 * b * relation_heads * t
    return map_chunks(loss_of_chunk, arrays, width=width, chunk_size=chunk_size).T


def _scores(query_tbrz, key_sbrz, seen_tbs):
    """Compute a a^T / sqrt(size) of the tokens that each token may see: [t b r s].

    It is -1e30 for tokens that it may not see.
    """
    scores_tbrs = dot("tbrz,sbrz->tbrs", query_tbrz, key_sbrz, jnp.float32)
    scores_tbrs *= query_tbrz.shape[-1] ** -0.5
    # Not -inf: forward_kl subtracts the two sides' scores, and -inf minus -inf is NaN
    return jnp.where(seen_tbs[:, :, None], scores_tbrs, -1e30)
