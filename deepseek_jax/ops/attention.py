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
    t, g = q.shape[1], q.shape[2] // k.shape[2]
    before_ts = jnp.tril(jnp.ones((t, t), bool))
    mask_bts = before_ts & (segment_ids[:, :, None] == segment_ids[:, None, :])
    k_bksx, v_bksu = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores_bkms = dot("bkmx,bksx->bkms", _by_key_head(q, g), k_bksx, jnp.float32) * scale
    weights_bkms = _masked_softmax(scores_bkms, mask_bts[:, None, None], v.dtype)
    return _by_token(dot("bkms,bksu->bkmu", weights_bkms, v_bksu), g)


def attend_branches(q, k, v, *, scale, segment_ids, prefix_length, branches):
    """Attention over rows [prefix, branch 1, ..., branch n]: a branch sees the prefix and itself alone.

    This is how a prompt shared by n completions is computed once. Shapes as in `attend`, where t is
    prefix_length + branches * length of a branch; segment_ids: int32[b t], 0 on padding, 1 elsewhere.
    Equal to n rows [prefix, branch i] of their own. Returns [b t h u] in v's dtype.
    """
    b, g = len(q), q.shape[2] // k.shape[2]

    def split(a):
        return a[:, :prefix_length], a[:, prefix_length:].reshape(b, branches, -1, *a.shape[2:])

    (q_prefix, q_bnthx), (k_prefix, k_bnskx), (v_prefix, v_bnsku) = split(q), split(k), split(v)
    seen_bs, seen_bns = split(segment_ids)
    prefix_bthu = attend(q_prefix, k_prefix, v_prefix, scale=scale, segment_ids=seen_bs)

    q_bknmx = jnp.moveaxis(_by_key_head(q_bnthx, g), 2, 1)
    k_bksx, v_bksu = jnp.swapaxes(k_prefix, 1, 2), jnp.swapaxes(v_prefix, 1, 2)
    k_bknsx, v_bknsu = jnp.moveaxis(k_bnskx, 3, 1), jnp.moveaxis(v_bnsku, 3, 1)
    to_prefix = dot("bknmx,bksx->bknms", q_bknmx, k_bksx, jnp.float32)
    to_branch = dot("bknmx,bknsx->bknms", q_bknmx, k_bknsx, jnp.float32)
    length = q_bnthx.shape[2]
    before_ts = jnp.tril(jnp.ones((length, length), bool))
    see_branch = before_ts & (seen_bns[:, :, :, None] == seen_bns[:, :, None, :])
    see_prefix = jnp.broadcast_to(
        (seen_bs > 0)[:, None, None], (*see_branch.shape[:-1], prefix_length)
    )
    weights_bknms = _masked_softmax(
        jnp.concatenate([to_prefix, to_branch], axis=-1) * scale,
        jnp.concatenate([see_prefix, see_branch], axis=-1)[:, None, :, None],
        v.dtype,
    )
    out_bknmu = dot("bknms,bksu->bknmu", weights_bknms[..., :prefix_length], v_bksu)
    out_bknmu += dot("bknms,bknsu->bknmu", weights_bknms[..., prefix_length:], v_bknsu)
    out_bnthu = _by_token(jnp.moveaxis(out_bknmu, 1, 2), g)
    return jnp.concatenate([prefix_bthu, out_bnthu.reshape(b, -1, *out_bnthu.shape[3:])], axis=1)


def _by_key_head(q, g):
    """[... t h x] -> [... k m x], m = g * t: one matrix of queries a key head, as products want them."""
    *b, t, h, x = q.shape
    return jnp.moveaxis(q.reshape(*b, t, h // g, g, x), -4, -2).reshape(*b, h // g, g * t, x)


def _by_token(out, g):
    """The inverse of _by_key_head."""
    *b, k, m, u = out.shape
    return jnp.moveaxis(out.reshape(*b, k, g, m // g, u), -2, -4).reshape(*b, m // g, k * g, u)


def _masked_softmax(scores, mask, dtype):
    """Over scores float32[... m s], m = g * t, where mask bool[... g t s] allows."""
    *rest, m, s = scores.shape
    apart = scores.reshape(*rest, -1, mask.shape[-2], s)
    return _softmax(apart, mask, dtype).reshape(*rest, m, s)


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
