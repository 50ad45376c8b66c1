"""Multi-head latent attention (arXiv:2405.04434, section 2.1; arXiv:2412.19437, eqs. 1-11).

Tests: tests/models/test_steps.py, tests/models/test_parity.py.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from typing_extensions import override

from deepseek_jax.models import indexer
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, linear, unrounded, weight
from deepseek_jax.ops.attention import attend_latent, attend_latent_selected
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope, yarn_mscale
from deepseek_jax.parallel.context import attend_rows
from deepseek_jax.parallel.decoding import (
    by_slot,
    heads_to_slots,
    own_rows,
    own_slots,
    slots_to_heads,
)
from deepseek_jax.parallel.few_tokens import Split, added_up
from deepseek_jax.parallel.shard import constrain

# The released code uses this for the latents' norms, whatever rms_norm_eps is
LATENT_NORM_EPS = 1e-6


class MultiHeadLatentAttention(nn.Module):
    """Multi-head latent attention: each token's keys and values come from one low-rank latent.

    Training and prefill expand the latent to keys and values. Decoding absorbs the up-projections
    into the queries and the output instead, so that the cache contains only latents. With an
    indexer, each query attends to the keys that it selects (DeepSeek-V3.2-Exp, section 2), and the
    cache contains the indexer's keys too.
    """

    config: ModelConfig

    @override
    def setup(self):
        cfg = self.config
        d, h, q_rank = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank or 0
        _, c, n, r, u = cfg.latent
        # In a rollout, one weight does both projections down, see rollout.weights
        self.joins_down = self.has_variable("params", "down")
        if self.joins_down:
            self.w_down = weight(self, "down", embed=d, latent=q_rank + c + r)
        elif q_rank:
            self.w_q_down = weight(self, "q_down", embed=d, latent=q_rank)
        if q_rank:
            self.q_norm = RMSNorm(cfg, q_rank, "q_lora", LATENT_NORM_EPS)
            self.w_q_up = weight(self, "q_up", q_lora=q_rank, heads=h, head_dim=n + r)
        else:
            self.w_q = weight(self, "q", embed=d, heads=h, head_dim=n + r)
        if not self.joins_down:
            # The latent, then the rotary key that all heads share
            self.w_kv_down = weight(self, "kv_down", embed=d, latent=c + r)
        # This norm is in section 4.2, but not in eqs. 1-5. The rotary key has no norm
        self.kv_norm = RMSNorm(cfg, c, "kv_lora", LATENT_NORM_EPS)
        # Two weights, which checkpoints join: decoding absorbs k_up into queries and v_up into outputs
        self.w_k_up = weight(self, "k_up", kv_lora=c, heads=h, head_dim=n)
        self.w_v_up = weight(self, "v_up", kv_lora=c, heads=h, head_dim=u)
        self.w_out = weight(self, "out", heads=h, head_dim=u, embed=d)
        if cfg.has_indexer:
            self.indexer = indexer.LightningIndexer(cfg)
        self.linear = functools.partial(linear, cfg)

    @property
    def scale(self):
        """The factor on attention's scores."""
        sizes, scaling = self.config.latent, self.config.rope_scaling
        scale = (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim) ** -0.5
        # The released code has this factor; eq. 10 does not
        if scaling is not None and scaling.mscale_all_dim:
            scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
        return scale

    def _out(self, spec, attended):
        # power_of_two: the published scales for the inputs of this Linear (arXiv:2412.19437, section 3.3.3)
        return self.linear(spec, attended, self.w_out, power_of_two=True)

    def _down(self, x_btd):
        """Project down to the latents.

        Returns:
            The latent of queries [b t q], None without q_lora_rank; and the latent of keys and
            values with the rotary key, [b t c+r].
        """
        q_rank = self.config.q_lora_rank
        if self.joins_down:
            # The weight is split by columns. Pinned, the few rows travel instead of the weight
            down_btx = own_rows(self.linear("btd,dx->btx", own_rows(x_btd), self.w_down))
            return jnp.split(down_btx, [q_rank], axis=-1) if q_rank else (None, down_btx)
        # The backward pass recomputes norms and up-projections from here (arXiv:2412.19437, section 3.2.3)
        down_btq = None
        if q_rank:
            down_btq = save_for_backward(self.linear("btd,dq->btq", x_btd, self.w_q_down))
        return down_btq, save_for_backward(self.linear("btd,dc->btc", x_btd, self.w_kv_down))

    def _queries(self, x_btd, down_btq, rope):
        """Compute the queries (eqs. 6-9) and what the indexer scores keys with.

        Returns:
            The part of queries without positions [b t h n], the rotated part [b t h r], and an
            indexer.Index or None.
        """
        index = None
        if down_btq is not None:
            latent_btq = self.q_norm(down_btq)
            q_bthx = self.linear("btq,qhx->bthx", latent_btq, self.w_q_up)
            if self.config.has_indexer:
                index = self.indexer(x_btd, latent_btq, rope)
        else:
            q_bthx = self.linear("btd,dhx->bthx", x_btd, self.w_q)
        q_nope, q_rope = jnp.split(q_bthx, [self.config.latent.qk_nope_head_dim], axis=-1)
        return q_nope, apply_rope(q_rope, *rope), index

    def _latent(self, down_btx, rope):
        """Compute c_kv [b t c] and k_rope [b t r] (eqs. 1 and 3)."""
        c_kv, k_rope = jnp.split(down_btx, [self.config.latent.kv_lora_rank], axis=-1)
        return self.kv_norm(c_kv), apply_rope(k_rope[:, :, None], *rope)[:, :, 0]

    def project(self, x_btd, rope):
        """Compute, in expanded form, queries and keys [b t h n+r] and values [b t h u]."""
        (q_nope, q_rope, _), latent = self._read_and_write(x_btd, rope)
        return self._expand(q_nope, q_rope, *map(_whole_rows, latent))

    def _read_and_write(self, x_btd, rope):
        """Compute the results of `_queries` and of `_latent`."""
        down_btq, down_btx = self._down(x_btd)
        return self._queries(x_btd, down_btq, rope), self._latent(down_btx, rope)

    def _expand(self, q_nope, q_rope, c_kv, k_rope):
        """Expand keys and values from the latent of whole rows: queries, keys, values."""
        k_nope = self.linear("bsc,chn->bshn", c_kv, self.w_k_up)
        v = self.linear("bsc,chu->bshu", c_kv, self.w_v_up)
        # Eq. 4: every head has the same rotary key
        k_rope_bthr = jnp.broadcast_to(k_rope[:, :, None], q_rope.shape)
        q = jnp.concatenate([q_nope, q_rope], axis=-1)
        k = jnp.concatenate([k_nope, k_rope_bthr], axis=-1)
        return q, k, v

    def __call__(self, x_btd, rope, segment_ids, branches=None):
        """Attend within rows in expanded form, in training and prefill.

        Args:
            x_btd: [b t d], the normed input.
            rope: Cosines and sines, see layers.position_tables.
            segment_ids: int32[b t], 0 on padding.
            branches: An ops.branches.Branches, or None.

        Returns:
            The output [b t d], the cache entries [b t ...], and the indexer's loss, see
            indexer.loss. The loss is None without an indexer, with branches, and where
            config.indexer_loss is "none".
        """
        cfg, selected, loss = self.config, None, None
        (q_nope, q_rope, index), latent = self._read_and_write(x_btd, rope)
        if index is not None and indexer.gathers(cfg, x_btd.shape[1], branches):
            entries, q = _entries(latent, index), self._absorb(q_nope, q_rope)
            z_bthc, loss = indexer.attend_selected(
                cfg, index, q, entries["latents"], segment_ids, self.scale
            )
            out_bthu = save_for_backward(unrounded(cfg, "bthc,chu->bthu", z_bthc, self.w_v_up))
            return self._out("bthu,hud->btd", out_bthu), entries, loss
        latent = [*map(_whole_rows, latent)]
        entries, (q, k, v) = _entries(latent, index), self._expand(q_nope, q_rope, *latent)
        if index is not None:
            selected = indexer.select(cfg, index, segment_ids, branches)
            if branches is None:
                loss = indexer.loss(cfg, index, (q, k), segment_ids, selected, self.scale)
        out_bthu = attend_rows(q, k, v, segment_ids, branches, self.scale, selected)
        return self._out("bthu,hud->btd", out_bthu), entries, loss

    def decode(self, x_bd, rope, cache, write):
        """Attend in absorbed form from one new token of each sequence.

        Args:
            x_bd: [b d], the normed input.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache, see cache.empty_cache.
            write: A cache.CacheWrite or cache.PositionWrite, with mask bool[b s].

        Returns:
            The output [b d], and the cache with the new tokens' entries.
        """
        q_bthx, scorers, cache = self._step(x_bd[:, None], rope, cache, write)
        q_bhx, scorers = jax.tree.map(lambda a: a[:, 0], (q_bthx, scorers))
        attend = functools.partial(self._attend_cache, write.ring)
        z_bhc = by_slot(attend, heads_to_slots(q_bhx), write.mask, scorers, cache)
        # Expand before heads travel between devices: u is a quarter of c
        out_bhu = slots_to_heads(dot("bhc,chu->bhu", own_slots(z_bhc), self.w_v_up))
        if self.config.fp8:
            return self._out("bhu,hud->bd", out_bhu), cache
        product, axes = functools.partial(dot, "bhu,hud->bd"), ("heads", None, None)
        w_out = Split((self.w_out,), (axes,), contracted="heads")
        return added_up(product, out_bhu, ("batch", "heads", None), w_out), cache

    def extend(self, x_btd, rope, cache, write):
        """Attend from t new tokens of each sequence: `decode` for more than one token.

        Args:
            x_btd: [b t d], the normed input.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache, see cache.empty_cache.
            write: A cache.PositionWrite, with mask bool[b t s].

        Returns:
            The output [b t d], and the cache with the new tokens' entries.
        """
        q_bthx, scorers, cache = self._step(x_btd, rope, cache, write)
        # All t queries of a sequence read the same cache
        attend = functools.partial(self._attend_cache, write.ring)
        attend = jax.vmap(attend, in_axes=(1, 1, 1, None), out_axes=1)
        z_bthc = by_slot(attend, heads_to_slots(q_bthx), write.mask, scorers, cache)
        out_bthu = slots_to_heads(dot("bthc,chu->bthu", own_slots(z_bthc), self.w_v_up))
        return self._out("bthu,hud->btd", out_bthu), cache

    def _absorb(self, q_nope, q_rope):
        """Move the up-projection of keys into queries: [b t h c+r]."""
        # (W c) . q = c . (W^T q): from all keys to one query
        q_latent = unrounded(self.config, "bthn,chn->bthc", q_nope, self.w_k_up)
        return jnp.concatenate([q_latent, q_rope], axis=-1)

    def _step(self, x_btd, rope, cache, write):
        """Write new tokens into the cache, and compute the queries that read it.

        Returns:
            The queries [b t h c+r]; the scorers (q [b t j y], w [b t j], write.index int32[b t]) if
            queries select slots, else None; and the cache with the new tokens' entries.
        """
        down_btq, down_btx = self._down(x_btd)
        q_nope, q_rope, index = self._queries(x_btd, down_btq, rope)
        q_bthx = self._absorb(q_nope, q_rope)
        entries = _entries(self._latent(own_slots(down_btx), rope), index)
        cache = {
            name: own_slots(write(cache[name], own_slots(entry))) for name, entry in entries.items()
        }
        scorers = None
        if self.config.selects(cache["latents"].shape[1]):
            index_bt = jnp.broadcast_to(write.index, x_btd.shape[:2])
            scorers = jax.tree.map(own_slots, (index.q, index.w, index_bt))
        return q_bthx, scorers, cache

    def _attend_cache(self, ring, q_bhx, mask_bs, scorers, cache):
        """Attend with one query of each sequence over its cache.

        Args:
            ring: See cache.CacheWrite.
            q_bhx: [b h c+r].
            mask_bs: bool[b s], the slots that each sequence may see.
            scorers: The scorers of _step without the axis t, or None.
            cache: This layer's cache.

        Returns:
            The weighted sum of latents, [b h c].
        """
        latents, c = cache["latents"], self.config.latent.kv_lora_rank
        if scorers is None:
            return attend_latent(q_bhx, latents, kv_lora_rank=c, scale=self.scale, mask=mask_bs)
        q_bjy, w_bj, index_b = scorers
        scored = q_bjy, w_bj, cache["k_index"], mask_bs
        # In a ring all sequences write one slot
        chosen = indexer.choose_slots(self.config, *scored, ring, index_b[0])
        return attend_latent_selected(q_bhx, latents, chosen, kv_lora_rank=c, scale=self.scale)


def _whole_rows(x_btc):
    """Gather rows here: the latent is smaller to send than the keys and values from it."""
    return constrain(x_btc, ("batch", None, None))


def _entries(latent, index):
    """Return the entries of the cache, [b t ...] each, from the pair (c_kv, k_rope)."""
    entries = {"latents": jnp.concatenate(latent, axis=-1)}
    return entries if index is None else entries | {"k_index": index.k}
