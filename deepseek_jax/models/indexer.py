"""The lightning indexer of DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, section 2; arXiv:2512.02556)."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.models.cache import in_order, slots_in_order
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import linear, weight
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.selection import index_scores, select_branches, select_indices, select_rows
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.context import by_rows, over_queries

# The released code uses this for the keys' norm, whatever rms_norm_eps is
KEY_NORM_EPS = 1e-6


class Index(NamedTuple):
    """What scores keys: q [b t j y], k [b t y], w float32[b t j] of ops.selection.index_scores."""

    q: jax.Array
    k: jax.Array
    w: jax.Array


class KeyNorm(nn.Module):
    """LayerNorm of the keys: zero mean and unit variance over the last axis, in float32, then scale and bias
    (arXiv:1607.06450).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        y = self.config.index_head_dim
        scale = weight(self, "scale", init=nn.initializers.ones, index_head_dim=y)
        bias = weight(self, "bias", init=nn.initializers.zeros, index_head_dim=y)
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + KEY_NORM_EPS)
        return (wide * scale + bias).astype(x.dtype)


class LightningIndexer(nn.Module):
    """Scores of all keys for each query, from a few small heads; a query attends to the best index_topk keys.

    Its inputs get no gradient: it learns from ops.index_loss alone.
    """

    config: ModelConfig

    def setup(self):
        cfg = self.config
        d, j, y = cfg.hidden_size, cfg.index_n_heads, cfg.index_head_dim
        self.w_q = weight(self, "q_up", q_lora=cfg.q_lora_rank, index_heads=j, index_head_dim=y)
        self.w_k = weight(self, "k", embed=d, index_head_dim=y)
        self.k_norm = KeyNorm(cfg)
        self.w_heads = weight(self, "head_weights", embed=d, index_heads=j)
        self.linear = functools.partial(linear, cfg)

    def __call__(self, x_btd, latent_btq, rope):
        """x [b t d] and MLA's normed query latent [b t q] -> Index."""
        x_btd, latent_btq = jax.lax.stop_gradient((x_btd, latent_btq))
        q_btjy = self.linear("btq,qjy->btjy", latent_btq, self.w_q)
        # In a rollout each device has some of the heads. Pinned, or the compiler gathers the weight
        q_btjy = constrain(q_btjy, ("batch", "seq", "index_heads", None))
        k_bty = self.k_norm(save_for_backward(self.linear("btd,dy->bty", x_btd, self.w_k)))
        # float32 in every dtype, and never FP8, as in the released code
        w_btj = dot("btd,dj->btj", x_btd.astype(jnp.float32), self.w_heads)
        w_btj = constrain(w_btj, ("batch", "seq", "index_heads"))
        w_btj = save_for_backward(w_btj * self.config.index_n_heads**-0.5)
        return Index(
            self._rotate(q_btjy, rope), self._rotate(k_bty[:, :, None], rope)[:, :, 0], w_btj
        )

    def _rotate(self, a, rope):
        # The first numbers, in half-split pairs; MLA rotates the last ones, stored side by side
        rotary, rest = jnp.split(a, [self.config.qk_rope_head_dim], axis=-1)
        return jnp.concatenate([apply_rope(rotary, *rope), rest], axis=-1)


def select(config: ModelConfig, index: Index, segment_ids, branches):
    """The keys that each query of a row selected: uint8[b t z] for ops.attention, or None for all.

    branches: an ops.branches.Branches, or None.
    """
    t = segment_ids.shape[1]
    if branches is None:
        if not config.selects(t):
            return None

        def of_queries(queries, keys, first):
            (q, w, segments_bt), (k, segments_bs) = queries, keys
            return select_rows(
                q, k, w, segments_bt, segments_bs, first=first, index_topk=config.index_topk
            )

        queries, keys = (index.q, index.w, segment_ids), (index.k, segment_ids)
        selected = over_queries(of_queries, queries, keys)
    else:
        length = (t - branches.prefix_length) // branches.branches
        if not config.selects(branches.prefix_length + length):
            return None
        select_all = functools.partial(
            select_branches, layout=branches, index_topk=config.index_topk
        )
        selected = by_rows(select_all, index.q, index.k, index.w, segment_ids)
    # Saved under every policy that saves attention's results: its gradient is of this selection
    return save_for_backward(checkpoint_name(selected, ATTENDED))


def loss(config: ModelConfig, index: Index, attention, segment_ids, selected, scale):
    """Sum over real tokens of ops.index_loss: float32[], or None where config.indexer_loss is "none".

    attention: queries and keys [b t h x] of the model's own attention, with its scale. selected: of `select`.
    """
    if config.indexer_loss == "none":
        return None

    def of_queries(queries, keys, first):
        (q_index, w, q, segments_bt, selected), (k_index, k, segments_bs) = queries, keys
        parts = (q_index, k_index, w), (q, k), segments_bt, segments_bs, selected
        return index_loss(*parts, first=first, scale=scale)

    q, k = jax.lax.stop_gradient(attention)
    queries = index.q, index.w, q, segment_ids, selected
    return over_queries(of_queries, queries, (index.k, k, segment_ids)).sum()


def choose_slots(config: ModelConfig, q_bjy, w_bj, k_index, mask_bs, ring, newest):
    """The slots of a cache that one query a sequence attends to, see ops.selection.select_indices.

    k_index: [b s y]. ring, newest: see models.cache.
    """
    scores_bs = index_scores(q_bjy[:, None], k_index, w_bj[:, None])[:, 0]
    ordered = (in_order(a_bs, ring, newest) for a_bs in (scores_bs, mask_bs))
    indices_bk, mask_bk = select_indices(*ordered, config.index_topk)
    return slots_in_order(indices_bk, len(mask_bs[0]), ring, newest), mask_bk
