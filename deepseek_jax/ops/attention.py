"""Causal attention: over packed rows, over completions that share a prompt, and over a decoding cache.

Letters beyond the shared ones: g query heads of one key head, x a query or key head's width, n a branch.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot

MASKED = -1e30  # finite: a row with nothing to see stays finite too


def _softmax(scores, mask, dtype):
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(dtype)


def attend(q, k, v, *, scale, segment_ids):
    """Each token sees itself and the tokens before it in its own segment.

    q: [b t h x], k: [b t k x], v: [b t k u], where query head i reads key head i // (h / k).
    segment_ids: int32[b t]. scale: what scores are multiplied by. Scores and softmax are float32.
    Returns [b t h u] in v's dtype.
    """
    b, t, h, x = q.shape
    q_btkgx = q.reshape(b, t, k.shape[2], -1, x)
    scores_bkgts = dot("btkgx,bskx->bkgts", q_btkgx, k, jnp.float32) * scale
    before_ts = jnp.tril(jnp.ones((t, t), bool))
    mask_bts = before_ts & (segment_ids[:, :, None] == segment_ids[:, None, :])
    weights_bkgts = _softmax(scores_bkgts, mask_bts[:, None, None], v.dtype)
    return dot("bkgts,bsku->btkgu", weights_bkgts, v).reshape(b, t, h, -1)


def attend_branches(q, k, v, *, scale, segment_ids, prefix_length, branches):
    """Attention over rows [prefix, branch 1, ..., branch n]: a branch sees the prefix and itself alone.

    This is how a prompt shared by n completions is computed once. Shapes as in `attend`, where t is
    prefix_length + branches * length of a branch; segment_ids: int32[b t], 0 on padding, 1 elsewhere.
    Equal to n rows [prefix, branch i] of their own. Returns [b t h u] in v's dtype.
    """
    b, _, h, x = q.shape
    heads = k.shape[2]

    def split(a):
        return a[:, :prefix_length], a[:, prefix_length:].reshape(b, branches, -1, *a.shape[2:])

    q_prefix, q_bnthx = split(q)
    (k_prefix, k_bnskx), (v_prefix, v_bnsku), (seen_bs, seen_bns) = (
        split(k),
        split(v),
        split(segment_ids),
    )
    prefix_bthu = attend(q_prefix, k_prefix, v_prefix, scale=scale, segment_ids=seen_bs)

    length = q_bnthx.shape[2]
    q_bntkgx = q_bnthx.reshape(b, branches, length, heads, -1, x)
    to_prefix = dot("bntkgx,bskx->bnkgts", q_bntkgx, k_prefix, jnp.float32)
    to_branch = dot("bntkgx,bnskx->bnkgts", q_bntkgx, k_bnskx, jnp.float32)
    before_ts = jnp.tril(jnp.ones((length, length), bool))
    see_prefix = jnp.broadcast_to((seen_bs > 0)[:, None, None, None, None], to_prefix.shape)
    see_branch = before_ts & (
        seen_bns[:, :, None, None, None] == seen_bns[:, :, None, None, :, None]
    )
    weights = _softmax(
        jnp.concatenate([to_prefix, to_branch], axis=-1) * scale,
        jnp.concatenate([see_prefix, jnp.broadcast_to(see_branch, to_branch.shape)], axis=-1),
        v.dtype,
    )
    out = dot("bnkgts,bsku->bntkgu", weights[..., :prefix_length], v_prefix)
    out += dot("bnkgts,bnsku->bntkgu", weights[..., prefix_length:], v_bnsku)
    return jnp.concatenate([prefix_bthu, out.reshape(b, branches * length, h, -1)], axis=1)


def attend_cached(q, k, v, *, scale, mask):
    """One query per sequence against its cache: q [b h x], k [b k s x], v [b k s u], mask bool[b s].

    Returns [b h u] in v's dtype.
    """
    b, h, x = q.shape
    q_bkgx = q.reshape(b, k.shape[1], -1, x)
    scores_bkgs = dot("bkgx,bksx->bkgs", q_bkgx, k, jnp.float32) * scale
    weights_bkgs = _softmax(scores_bkgs, mask[:, None, None], v.dtype)
    return dot("bkgs,bksu->bkgu", weights_bkgs, v).reshape(b, h, -1)


def attend_latent(q_latent, q_rope, c_kv, k_rope, *, scale, mask):
    """Absorbed multi-head latent attention: queries already multiplied into the latent space
    (arXiv:2405.04434, appendix C), so that keys and values are never expanded.

    q_latent: [b h c], q_rope: [b h r], c_kv: [b s c], k_rope: [b s r], mask: bool[b s].
    Returns the attended latents [b h c] in c_kv's dtype, to be expanded by the value up-projection.
    """
    scores_bhs = dot("bhc,bsc->bhs", q_latent, c_kv, jnp.float32)
    scores_bhs = (scores_bhs + dot("bhr,bsr->bhs", q_rope, k_rope, jnp.float32)) * scale
    weights_bhs = _softmax(scores_bhs, mask[:, None], c_kv.dtype)
    return dot("bhs,bsc->bhc", weights_bhs, c_kv)
