"""Causal attention over packed rows, over completions of one prompt, and over a decoding cache.

More dimension letters: g query heads per key head, x width of a query or key head, n branch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.pallas import attention as pallas
from deepseek_jax.ops.pallas import decoding
from deepseek_jax.ops.platform import choose, size_of
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.selection import packed, unpacked

# Finite: with -inf, a query that sees no key would give NaN
MASKED = -1e30


def _softmax(scores, mask, dtype):
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(dtype)


def attend(
    q,
    k,
    v,
    *,
    scale: float,
    segment_ids,
    selected=None,
    kernels: bool = True,
    implementation: str | None = None,
):
    """Compute causal attention over packed rows.

    Each token sees itself and the earlier tokens of its own segment. With `selected`, it sees only
    the keys among them that its query selected. Scores and softmax are float32.

    Implementations:
    - "whole" has all scores, float32[b h t t], in memory at once.
    - "blockwise" has the scores of one block of queries and one block of keys in memory. It
      recomputes them for the gradient and skips blocks of later keys.
    - "splash" is JAX's Pallas kernel for TPU, which holds the scores in vector memory.
    - "interpreted" emulates "splash" on any machine.

    Args:
        q: [b t h x]. Query head i reads key head i // (h / k).
        k: [b t k x].
        v: [b t k u].
        scale: Factor of the scores.
        segment_ids: int32[b t].
        selected: uint8[b t z], bits of the keys that each query selected, see
            ops.selection.select_rows. None: every key.
        kernels: Pass False in a program that the compiler splits over devices: it cannot split a
            kernel.
        implementation: None takes "whole" for short rows and the choice of ops.platform for long
            ones. It takes no kernel for narrow heads, for float32 or with a selection.

    Returns:
        [b t h u] in v's dtype.

    Raises:
        ValueError: If this machine lacks the implementation, or if a kernel gets a selection.
    """
    if implementation is None and q.shape[1] <= size_of("longest_whole_row"):
        implementation = "whole"
    form = choose(
        "attend",
        implementation,
        suits=lambda: kernels and selected is None and pallas.takes(q, v),
        whole=_attend_whole,
        blockwise=_attend_blockwise,
        splash=_by_kernel(pallas.attend),
        interpreted=_by_kernel(functools.partial(pallas.attend, interpret=True)),
    )
    return form(q, k, v, segment_ids, selected, scale)


def _by_kernel(kernel):
    def form(q, k, v, segment_ids, selected, scale):
        if selected is not None:
            raise ValueError("attend's kernel takes no selection; leave out implementation")
        return kernel(q, k, v, segment_ids, scale)

    return form


def _attend_whole(q, k, v, segment_ids, selected, scale):
    t, g = q.shape[1], q.shape[2] // k.shape[2]
    before_ts = jnp.tril(jnp.ones((t, t), bool))
    mask_bts = before_ts & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if selected is not None:
        mask_bts &= unpacked(selected, t)
    k_bksx, v_bksu = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores_bkms = dot("bkmx,bksx->bkms", _by_key_head(q, g), k_bksx, jnp.float32) * scale
    weights_bkms = _masked_softmax(scores_bkms, mask_bts[:, None, None], v.dtype)
    return _by_token(dot("bkms,bksu->bkmu", weights_bkms, v_bksu), g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_blockwise(q, k, v, segment_ids, selected, scale):
    """Compute `attend` with an online softmax over blocks of keys (arXiv:2205.14135).

    Each product takes one block of queries and one block of keys.
    """
    return _blockwise_forward(q, k, v, segment_ids, selected, scale)[0]


def _blockwise_forward(q, k, v, segment_ids, selected, scale):
    t, g = q.shape[1], q.shape[2] // k.shape[2]
    # The masks depend on no layer. This barrier ties them to q: without it, a scan over layers
    # would compute and hold the masks of all layers before its first layer
    tied_q, tied_ids, pairs = jax.lax.optimization_barrier((q, segment_ids, _pairs(t)))
    blocks = _Blocks(tied_q, k, v, tied_ids, selected, scale)
    n, b, heads, m, _ = blocks.q.shape
    shape = (b, heads, m, 1)
    empty_sums = jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((b, heads, m, v.shape[-1]))

    def step(carry, pair):
        (max_score, weight_sum, sum_bkmu), out_nbkmu, normalizer_nbkm1 = carry
        i, j = pair
        # j == i is the first block of keys for these queries: reset the running sums
        max_score, weight_sum, sum_bkmu = jax.tree.map(
            lambda new, old: jnp.where(j == i, new, old),
            empty_sums,
            (max_score, weight_sum, sum_bkmu),
        )
        scores_bkms = blocks.scores(i, j)
        # Earlier sums are relative to the old maximum: rescale them (arXiv:2205.14135, section 3.1)
        new_max = jnp.maximum(max_score, scores_bkms.max(-1, keepdims=True))
        weights_bkms, rescale = jnp.exp(scores_bkms - new_max), jnp.exp(max_score - new_max)
        weight_sum = rescale * weight_sum + weights_bkms.sum(-1, keepdims=True)
        weighted_values = dot(
            "bkms,bksu->bkmu", weights_bkms.astype(v.dtype), blocks.v[j], jnp.float32
        )
        sum_bkmu = rescale * sum_bkmu + weighted_values
        # Written after every block of keys, and complete after the last one
        out_nbkmu = out_nbkmu.at[i].set((sum_bkmu / weight_sum).astype(v.dtype))
        # From this one number per query the backward pass recomputes the weights, by one exp
        normalizer_nbkm1 = normalizer_nbkm1.at[i].set(new_max + jnp.log(weight_sum))
        return ((new_max, weight_sum, sum_bkmu), out_nbkmu, normalizer_nbkm1), None

    out_nbkmu = jnp.zeros((n, b, heads, m, v.shape[-1]), v.dtype)
    init = empty_sums, out_nbkmu, jnp.zeros((n, *shape))
    (_, out_nbkmu, normalizer_nbkm1), _ = jax.lax.scan(step, init, pairs)
    # remat="attention" saves these two for the backward pass, which then skips the forward blocks
    out = checkpoint_name(_joined(_by_token(out_nbkmu, g), t), ATTENDED)
    normalizer_nbkm1 = checkpoint_name(normalizer_nbkm1, ATTENDED)
    return out, (q, k, v, segment_ids, selected, out, normalizer_nbkm1)


def _blockwise_backward(scale, saved, cotangent):
    q, k, v, segment_ids, selected, out, normalizer_nbkm1 = saved
    t, g = q.shape[1], q.shape[2] // k.shape[2]
    blocks = _Blocks(q, k, v, segment_ids, selected, scale)
    d_out = _by_key_head(_split(cotangent), g)
    # The softmax's gradient needs sum_s(weight * d_weight), which is d_out . out (arXiv:2205.14135,
    # app. B.4)
    product = cotangent.astype(jnp.float32) * out.astype(jnp.float32)
    drift_nbkm1 = _by_key_head(_split(product.sum(-1, keepdims=True)), g)

    def over_queries(left, right):
        return dot("bkms,bkmz->bksz", left, right, jnp.float32)

    def step(carry, pair):
        d_q, d_k, d_v = carry
        i, j = pair
        weights_bkms = jnp.exp(blocks.scores(i, j) - normalizer_nbkm1[i])
        d_v = d_v.at[j].add(over_queries(weights_bkms.astype(v.dtype), d_out[i]))
        d_weights = dot("bkmu,bksu->bkms", d_out[i], blocks.v[j], jnp.float32)
        # Back to q's dtype: the two products below run at its precision
        d_scores = (weights_bkms * (d_weights - drift_nbkm1[i]) * scale).astype(q.dtype)
        d_q = d_q.at[i].add(dot("bkms,bksx->bkmx", d_scores, blocks.k[j], jnp.float32))
        d_k = d_k.at[j].add(over_queries(d_scores, blocks.q[i]))
        return (d_q, d_k, d_v), None

    # Float32 sums: bfloat16 would round them after every block
    init = tuple(jnp.zeros(x.shape, jnp.float32) for x in (blocks.q, blocks.k, blocks.v))
    (d_q, d_k, d_v), _ = jax.lax.scan(step, init, _pairs(t))
    d_k, d_v = (_joined(jnp.swapaxes(x, 2, 3), t) for x in (d_k, d_v))
    d_q = _joined(_by_token(d_q, g), t)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attend_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


class _Blocks:
    """Operands of `attend`, cut into n blocks along t.

    q [n b k m x], k [n b k s x], v [n b k s u], with m = g * block.
    """

    def __init__(self, q, k, v, segment_ids, selected, scale):
        self.g, self.scale = q.shape[2] // k.shape[2], scale
        self.selected = None if selected is None else _split(selected)
        self.q = _by_key_head(_split(q), self.g)
        self.k, self.v = (jnp.swapaxes(_split(x), 2, 3) for x in (k, v))
        self.segments = _split(segment_ids)

    def scores(self, i, j):
        """Return scores float32[b k m s] of query block i and key block j, MASKED if unseen."""
        scores_bkms = dot("bkmx,bksx->bkms", self.q[i], self.k[j], jnp.float32) * self.scale
        # t is the length of a block here
        t = self.segments.shape[-1]
        at_t, at_s = i * t + jnp.arange(t), j * t + jnp.arange(t)
        mask_bts = self.segments[i][:, :, None] == self.segments[j][:, None, :]
        mask_bts &= at_t[:, None] >= at_s
        if self.selected is not None:
            # j * t is a multiple of 8: a row of several blocks has blocks of whole bytes
            bits_btz = jax.lax.dynamic_slice_in_dim(self.selected[i], j * t // 8, -(-t // 8), 2)
            mask_bts &= unpacked(bits_btz, t)
        # The rows of a key head are its g query heads, one after the other: all share one mask
        return jnp.where(jnp.tile(mask_bts, (1, self.g, 1))[:, None], scores_bkms, MASKED)


def _pairs(t):
    """Return the blocks to visit, in order: (query blocks, key blocks), int32[pairs] each.

    For each block of queries, the same block of keys comes first, because every query sees a key in
    it. The earlier blocks follow.
    """
    n = -(-t // _block(t))
    # Never j > i: causal queries see no key of a later block
    i, j = np.array([(i, j) for i in range(n) for j in range(i, -1, -1)], np.int32).T
    return i, j


def _block(t):
    return min(size_of("attention_block"), t)


def _split(array):
    """Cut an array into blocks along t: [b t ...] -> [n b block ...].

    The end is padded with zeros. They come after every real query, so no real query sees them.
    """
    b, t, *inner_shape = array.shape
    block = _block(t)
    padded = jnp.pad(array, [(0, 0), (0, -t % block)] + [(0, 0)] * len(inner_shape))
    return jnp.moveaxis(padded.reshape(b, -1, block, *inner_shape), 1, 0)


def _joined(blocks, t):
    """Undo `_split`."""
    n, b, s, *inner_shape = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(b, n * s, *inner_shape)[:, :t]


def attend_branches(
    q,
    k,
    v,
    *,
    scale: float,
    segment_ids,
    layout: Branches,
    selected=None,
    kernels: bool = True,
):
    """Compute attention over rows [prefix, branch 1, ..., branch n], which share the prefix.

    A branch sees only the prefix and itself. With `selected`, it sees only the keys among them that
    its queries selected. The result equals n separate rows [prefix, branch i], but a prompt that n
    completions share is computed once.

    Args:
        q: [b t h x], with t = layout.prefix_length + layout.branches * length of a branch.
        k: [b t k x].
        v: [b t k u].
        scale: Factor of the scores.
        segment_ids: int32[b t], 0 on padding, 1 elsewhere.
        layout: Lengths of the row's parts.
        selected: uint8[b t z] from ops.selection.select_branches. None: every key.
        kernels: As in `attend`.

    Returns:
        [b t h u] in v's dtype.
    """
    g, prefix_length = q.shape[2] // k.shape[2], layout.prefix_length
    (q_prefix, q_bnthx), (k_prefix, k_bnskx), (v_prefix, v_bnsku) = map(layout.split, (q, k, v))
    segments_bs, segments_bns = layout.split(segment_ids)
    # A prefix does not see its branches, so it is an ordinary row
    prefix_selected = None
    if selected is not None:
        prefix_selected, branch_selected = layout.split(
            unpacked(selected, prefix_length + q_bnthx.shape[2])
        )
        prefix_selected = packed(prefix_selected[..., :prefix_length])
    prefix_bthu = attend(
        q_prefix,
        k_prefix,
        v_prefix,
        scale=scale,
        segment_ids=segments_bs,
        selected=prefix_selected,
        kernels=kernels,
    )

    q_bknmx = jnp.moveaxis(_by_key_head(q_bnthx, g), 2, 1)
    k_bksx, v_bksu = jnp.swapaxes(k_prefix, 1, 2), jnp.swapaxes(v_prefix, 1, 2)
    k_bknsx, v_bknsu = jnp.moveaxis(k_bnskx, 3, 1), jnp.moveaxis(v_bnsku, 3, 1)
    # Concatenate scores, not keys: concatenating keys would copy the prefix for every branch
    prefix_scores = dot("bknmx,bksx->bknms", q_bknmx, k_bksx, jnp.float32)
    branch_scores = dot("bknmx,bknsx->bknms", q_bknmx, k_bknsx, jnp.float32)
    branch_length = q_bnthx.shape[2]
    before_ts = jnp.tril(jnp.ones((branch_length, branch_length), bool))
    branch_mask = before_ts & (segments_bns[:, :, :, None] == segments_bns[:, :, None, :])
    # All of the prefix comes before every branch, so only its padding is masked
    prefix_mask = jnp.broadcast_to(
        (segments_bs > 0)[:, None, None], (*branch_mask.shape[:-1], prefix_length)
    )
    mask = jnp.concatenate([prefix_mask, branch_mask], axis=-1)
    if selected is not None:
        mask &= branch_selected
    weights_bknms = _masked_softmax(
        jnp.concatenate([prefix_scores, branch_scores], axis=-1) * scale,
        mask[:, None, :, None],
        v.dtype,
    )
    out_bknmu = dot("bknms,bksu->bknmu", weights_bknms[..., :prefix_length], v_bksu)
    out_bknmu += dot("bknms,bknsu->bknmu", weights_bknms[..., prefix_length:], v_bknsu)
    out_bnthu = _by_token(jnp.moveaxis(out_bknmu, 1, 2), g)
    return jnp.concatenate(
        [prefix_bthu, out_bnthu.reshape(len(q), -1, *out_bnthu.shape[3:])], axis=1
    )


def _by_key_head(q, g):
    """Put a key head's queries into one matrix, m = g * t: [... t h x] -> [... k m x]."""
    *b, t, h, x = q.shape
    return jnp.moveaxis(q.reshape(*b, t, h // g, g, x), -4, -2).reshape(*b, h // g, g * t, x)


def _by_token(out, g):
    """Undo `_by_key_head`."""
    *b, k, m, u = out.shape
    return jnp.moveaxis(out.reshape(*b, k, g, m // g, u), -2, -4).reshape(*b, m // g, k * g, u)


def _masked_softmax(scores, mask, dtype):
    """Return softmax of scores float32[... m s], m = g * t, where mask bool[... g t s] is True."""
    *lead_shape, m, s = scores.shape
    grouped_scores = scores.reshape(*lead_shape, -1, mask.shape[-2], s)
    return _softmax(grouped_scores, mask, dtype).reshape(*lead_shape, m, s)


def attend_cached(q, k, v, *, scale: float, mask):
    """Compute attention of one query per sequence over its cache.

    Args:
        q: [b h x].
        k: [z s x], where z counts all key heads of the first sequence, then all of the second, and
            so on.
        v: [z s u].
        scale: Factor of the scores.
        mask: bool[b s], True on the keys that the query sees.

    Returns:
        [b h u] in v's dtype.
    """
    b, h, x = q.shape
    q_zgx = q.reshape(len(k), -1, x)
    scores_zgs = dot("zgx,zsx->zgs", q_zgx, k, jnp.float32) * scale
    # In z, the heads of one sequence are adjacent: repeat each mask for them
    mask_zs = jnp.repeat(mask, len(k) // b, axis=0)
    weights_zgs = _softmax(scores_zgs, mask_zs[:, None], v.dtype)
    return dot("zgs,zsu->zgu", weights_zgs, v).reshape(b, h, -1)


def attend_latent(
    q, latents, *, kv_lora_rank: int, scale: float, mask, implementation: str | None = None
):
    """Compute absorbed multi-head latent attention (arXiv:2405.04434, appendix C).

    The queries are already in the latent space, so keys and values are never expanded.

    Args:
        q: [b h c+r]. The first c = kv_lora_rank numbers carry no position; the other r are rotated.
        latents: [b s c+r], the cache, split in the same way.
        kv_lora_rank: c.
        scale: Factor of the scores.
        mask: bool[b s], True on the tokens of the cache that the query sees.
        implementation: "plain" has all scores, float32[b h s], in memory. "kernel" is a Pallas
            kernel for TPU that keeps the scores of one block of the cache in vector memory, and
            "interpreted" emulates it. None takes the choice of ops.platform, and "plain" for arrays
            that the kernel does not take.

    Returns:
        The weighted sums of latents, [b h c] in their dtype. The value up-projection expands them.
    """
    form = choose(
        "attend_latent",
        implementation,
        suits=lambda: decoding.takes(q, latents, kv_lora_rank),
        plain=_attend_latent_plain,
        kernel=decoding.attend_latent,
        interpreted=functools.partial(decoding.attend_latent, interpret=True),
    )
    return form(q, latents, mask, kv_lora_rank, scale)


def attend_latent_selected(q, latents, chosen, *, kv_lora_rank: int, scale: float):
    """Compute `attend_latent` over a few latents, which it gathers from the cache.

    Args:
        q: [b h c+r].
        latents: [b s c+r].
        chosen: (int32[b k], bool[b k]) from ops.selection.select_indices.
    """
    slots_bk, mask_bk = chosen
    latents = jnp.take_along_axis(latents, slots_bk[..., None], axis=1)
    return attend_latent(q, latents, kv_lora_rank=kv_lora_rank, scale=scale, mask=mask_bk)


def _attend_latent_plain(q, latents, mask, kv_lora_rank, scale):
    # x: the content part and the rotary part (arXiv:2405.04434, eqs. 16-18)
    scores_bhs = dot("bhx,bsx->bhs", q, latents, jnp.float32) * scale
    weights_bhs = _softmax(scores_bhs, mask[:, None], latents.dtype)
    # Rotary keys are not values. Sum them too and drop them here: slicing the cache copies it
    return dot("bhs,bsx->bhx", weights_bhs, latents)[..., :kv_lora_rank]
