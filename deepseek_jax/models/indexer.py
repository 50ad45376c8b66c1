"""The lightning indexer of DeepSeek Sparse Attention, which selects keys for each query.

DeepSeek-V3.2-Exp, section 2; arXiv:2512.02556.

Tests: tests/models/test_sparse_attention.py.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from typing_extensions import override

from deepseek_jax.models.cache import in_order, slots_in_order
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import linear, weight
from deepseek_jax.ops import selected as ops
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.platform import size_of
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.selection import (
    index_scores,
    select_branches,
    select_indices,
    select_rows,
    select_slots,
)
from deepseek_jax.parallel.context import by_rows, over_queries
from deepseek_jax.parallel.shard import constrain

# The released code uses this for the keys' norm, whatever rms_norm_eps is
KEY_NORM_EPS = 1e-6


class Index(NamedTuple):
    """Queries, keys and head weights of an indexer's scores (ops.selection.index_scores).

    Attributes:
        q: [b t j y].
        k: [b t y].
        w: float32[b t j].
    """

    q: jax.Array
    k: jax.Array
    w: jax.Array


class KeyNorm(nn.Module):
    """LayerNorm of the indexer's keys (arXiv:1607.06450).

    Zero mean and unit variance over the last axis, in float32, then scale and bias.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """Norm the last axis of x [... y]."""
        y = self.config.indexer.index_head_dim
        scale = weight(self, "scale", init=nn.initializers.ones, index_head_dim=y)
        bias = weight(self, "bias", init=nn.initializers.zeros, index_head_dim=y)
        normed = x.astype(jnp.float32)
        normed = normed - normed.mean(-1, keepdims=True)
        normed *= jax.lax.rsqrt(jnp.mean(normed * normed, axis=-1, keepdims=True) + KEY_NORM_EPS)
        return (normed * scale + bias).astype(x.dtype)


class LightningIndexer(nn.Module):
    """Queries, keys and weights of a few small heads, which score all keys for each query.

    A query attends to the index_topk keys with the best scores. The inputs get no gradient: the
    indexer learns only from ops.index_loss.
    """

    config: ModelConfig

    @override
    def setup(self):
        cfg = self.config
        d, (q, j, y, _) = cfg.hidden_size, cfg.indexer
        self.w_q = weight(self, "q_up", q_lora=q, index_heads=j, index_head_dim=y)
        self.w_k = weight(self, "k", embed=d, index_head_dim=y)
        self.k_norm = KeyNorm(cfg)
        self.w_heads = weight(self, "head_weights", embed=d, index_heads=j)
        self.linear = functools.partial(linear, cfg)

    def __call__(self, x_btd, latent_btq, rope):
        """Compute what scores keys: an Index.

        Args:
            x_btd: [b t d], the normed input of attention.
            latent_btq: [b t q], MLA's normed query latent.
            rope: Cosines and sines, see layers.position_tables.
        """
        x_btd, latent_btq = jax.lax.stop_gradient((x_btd, latent_btq))
        q_btjy = self.linear("btq,qjy->btjy", latent_btq, self.w_q)
        # In a rollout each device has some of the heads. Without this, the compiler gathers the weight
        q_btjy = constrain(q_btjy, ("batch", "seq", "index_heads", None))
        k_bty = self.k_norm(save_for_backward(self.linear("btd,dy->bty", x_btd, self.w_k)))
        # float32 in every dtype, and never FP8, as in the released code
        w_btj = dot("btd,dj->btj", x_btd.astype(jnp.float32), self.w_heads)
        w_btj = constrain(w_btj, ("batch", "seq", "index_heads"))
        w_btj = save_for_backward(w_btj * self.config.indexer.index_n_heads**-0.5)
        return Index(
            self._rotate(q_btjy, rope), self._rotate(k_bty[:, :, None], rope)[:, :, 0], w_btj
        )

    def _rotate(self, a, rope):
        # The indexer rotates the first dimensions; MLA rotates the last ones. A checkpoint's pairs are
        # half-split here, and side by side in MLA
        rotary, unrotated = jnp.split(a, [self.config.latent.qk_rope_head_dim], axis=-1)
        return jnp.concatenate([apply_rope(rotary, *rope), unrotated], axis=-1)


def gathers(config: ModelConfig, t: int, branches) -> bool:
    """Return whether the queries of a row of t tokens gather the keys that they select.

    They do where the row is long, see ops.platform. Else they mask the other keys, and so they do
    in rows with branches.
    """
    long = t >= size_of("keys_to_gather_from") * config.indexer.index_topk
    return branches is None and config.selects(t) and long


def attend_selected(config: ModelConfig, index: Index, q_bthx, latents_bsx, segment_ids, scale):
    """Attend over the keys that queries select, in absorbed form, see ops.selected.

    Args:
        config: The model.
        index: From LightningIndexer.
        q_bthx: Absorbed queries.
        latents_bsx: The latents with their rotary keys.
        segment_ids: int32[b t], 0 on padding.
        scale: The factor on attention's scores.

    Returns:
        The weighted sums of latents, [b t h c], and the indexers' loss, float32[] or None.
    """
    slots = _save_selection(_over_own_queries(select_slots, config, index, segment_ids))
    learns = config.indexer_loss == "sparse"
    q_index, w_index = (index.q, index.w) if learns else (None, None)
    keys = jnp.concatenate([latents_bsx, index.k], axis=-1) if learns else latents_bsx

    def attend(queries, keys, _):
        *queries, slots = queries
        rank = config.latent.kv_lora_rank
        operands = ops.Queries(*queries), keys, slots
        return ops.attend_selected(*operands, kv_lora_rank=rank, scale=scale)

    out, loss = over_queries(attend, (q_bthx, q_index, w_index, slots), keys)
    return out, None if loss is None else loss.sum()


def _over_own_queries(select_some, config, index, segment_ids):
    """Call ops.selection.select_rows or select_slots for each device's queries."""

    def select_keys(queries, keys, first):
        (q, w, segments_bt), (k, segments_bs) = queries, keys
        operands = q, k, w, segments_bt, segments_bs
        return select_some(*operands, first=first, index_topk=config.indexer.index_topk)

    queries, keys = (index.q, index.w, segment_ids), (index.k, segment_ids)
    return over_queries(select_keys, queries, keys)


def _save_selection(selected):
    # Saved under every policy that saves attention's results, because their gradient needs this selection
    return save_for_backward(checkpoint_name(selected, ATTENDED))


def select(config: ModelConfig, index: Index, segment_ids, branches):
    """Select the keys that each query attends to.

    Args:
        config: The model.
        index: From LightningIndexer.
        segment_ids: int32[b t], 0 on padding.
        branches: An ops.branches.Branches, or None.

    Returns:
        uint8[b t z] for ops.attention; None if each query attends to all keys.
    """
    t = segment_ids.shape[1]
    if branches is None:
        if not config.selects(t):
            return None
        selected = _over_own_queries(select_rows, config, index, segment_ids)
    else:
        length = (t - branches.prefix_length) // branches.branches
        if not config.selects(branches.prefix_length + length):
            return None
        select_all = functools.partial(
            select_branches, layout=branches, index_topk=config.indexer.index_topk
        )
        selected = by_rows(select_all, index.q, index.k, index.w, segment_ids)
    return _save_selection(selected)


def loss(config: ModelConfig, index: Index, attention, segment_ids, selected, scale):
    """Sum ops.index_loss over real tokens.

    Args:
        config: The model.
        index: From LightningIndexer.
        attention: Queries and keys [b t h x] of the model's attention.
        segment_ids: int32[b t], 0 on padding.
        selected: The result of `select`.
        scale: The factor on attention's scores.

    Returns:
        float32[], or None where config.indexer_loss is "none".
    """
    if config.indexer_loss == "none":
        return None

    def query_losses(queries, keys, first):
        (q_index, w, q, segments_bt, selected), (k_index, k, segments_bs) = queries, keys
        operands = (q_index, k_index, w), (q, k), segments_bt, segments_bs, selected
        return index_loss(*operands, first=first, scale=scale)

    q, k = jax.lax.stop_gradient(attention)
    queries = index.q, index.w, q, segment_ids, selected
    return over_queries(query_losses, queries, (index.k, k, segment_ids)).sum()


def choose_slots(config: ModelConfig, q_bjy, w_bj, k_index, mask_bs, ring, newest):
    """Choose the cache slots that one query of each sequence attends to.

    Args:
        config: The model.
        q_bjy: [b j y].
        w_bj: float32[b j].
        k_index: [b s y], the cache's keys of the indexer.
        mask_bs: bool[b s], the slots that each sequence may see.
        ring: See cache.CacheWrite.
        newest: int32[], the slot written last.

    Returns:
        Slots and mask, as in ops.selection.select_indices.
    """
    scores_bs = index_scores(q_bjy[:, None], k_index, w_bj[:, None])[:, 0]
    scores_bs, mask_bs = (in_order(a_bs, ring, newest) for a_bs in (scores_bs, mask_bs))
    indices_bk, mask_bk = select_indices(scores_bs, mask_bs, config.indexer.index_topk)
    return slots_in_order(indices_bk, len(mask_bs[0]), ring, newest), mask_bk
