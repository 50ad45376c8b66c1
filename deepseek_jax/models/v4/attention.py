"""Attention over a window and compressed entries (arXiv:2606.19348, section 2.3).

Dimension letters besides the house's: x head_dim, g o_groups, c o_lora_rank, w entry.

Tests: tests/models/v4/test_cache.py, tests/models/v4/test_mistakes.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from typing_extensions import override

from deepseek_jax.models.layers import RMSNorm, rms_norm, weight
from deepseek_jax.models.v4 import indexer
from deepseek_jax.models.v4.cache import LayerCache, put
from deepseek_jax.models.v4.compressor import Compressor, Places
from deepseek_jax.models.v4.config import CSA, LayerKind, V4Config
from deepseek_jax.ops.compress import document_windows, seen_entries
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.release_rounding import fp8_keys
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope_last
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.window_attention import Entries, Keys, attend_seen
from deepseek_jax.parallel.context import attend_window_rows
from deepseek_jax.parallel.decoding import by_slot, heads_to_slots, own_slots, slots_to_heads


class WindowAttention(nn.Module):
    """Attention of many query heads to one vector for each token, which is key and value.

    Every layer attends to the latest tokens. A layer with a compressor attends to its entries in the
    same softmax: to all of them (HCA), or to those that an indexer selects (CSA).
    """

    config: V4Config
    kind: LayerKind

    @override
    def setup(self):
        cfg, kind = self.config, self.kind
        d, h, x = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim
        g, c = cfg.o_groups, cfg.o_lora_rank
        self.w_q_down = weight(self, "q_down", embed=d, q_lora=cfg.q_lora_rank)
        self.q_norm = RMSNorm(cfg, cfg.q_lora_rank, "q_lora")
        self.w_q_up = weight(self, "q_up", q_lora=cfg.q_lora_rank, heads=h, head_dim=x)
        self.w_kv = weight(self, "kv", embed=d, head_dim=x)
        self.kv_norm = RMSNorm(cfg, x, "head_dim")
        self.sink_h = weight(self, "sink_bias", init=nn.initializers.zeros, heads=h)
        # Heads of one group are projected together, and groups apart
        self.w_out_down = weight(
            self, "out_down", out_groups=g, group_heads=h // g, head_dim=x, out_lora=c
        )
        self.w_out_up = weight(self, "out_up", out_groups=g, out_lora=c, embed=d)
        if kind.rate:
            overlaps = kind.attention == CSA
            self.compressor = Compressor(cfg, kind.rate, x, "head_dim", overlaps)
        if kind.attention == CSA:
            self.indexer = indexer.LightningIndexer(cfg, kind.rate)

    def __call__(self, x_btd, places: Places):
        """Attend within rows.

        Args:
            x_btd: [b t d], the normed input.
            places: See compressor.places, for this layer's rate.

        Returns:
            The output [b t d]; the indexer's loss, see indexer.loss, None without an indexer; and
            what decoding remembers of whole rows, a LayerCache.
        """
        cfg, scale = self.config, self.config.head_dim**-0.5
        latent_btq, q_bthx, kv_btx = self._project(x_btd, places.rope)
        entries, index, remembered = self._entries(x_btd, latent_btq, places)
        keys = Keys(kv_btx, places.segment_ids, self.sink_h, entries)
        out_bthx = attend_window_rows(q_bthx, keys, window=cfg.sliding_window, scale=scale)
        # The names by which remat policies save attention's results
        out_bthx = save_for_backward(checkpoint_name(out_bthx, ATTENDED))
        loss = None if index is None else indexer.loss(cfg, index, q_bthx, keys, scale)
        return self._out(out_bthx, places.rope), loss, LayerCache(kv_btx, *remembered)

    def decode(self, x_b1d, positions_b1, places: Places, cache: LayerCache):
        """Attend from one token of each sequence, and return the output [b 1 d] and the cache.

        Args:
            x_b1d: [b 1 d], the normed input.
            positions_b1: int32.
            places: See compressor.step_places, for this layer's rate.
            cache: This layer's cache.
        """
        latent_b1q, q_b1hx, kv_b1x = self._project(x_b1d, places.rope)
        kv_bsx, index = put(cache.kv, positions_b1, kv_b1x), None
        compressed, keys = cache.compressor, cache.indexer
        if compressed is not None:
            compressed = self.compressor.decode(x_b1d, positions_b1, places.entries, compressed)
        if keys is not None:
            index, keys = self.indexer.decode(x_b1d, latent_b1q, positions_b1, places, keys)
        entries_bwx = None if compressed is None else self._rounded(compressed.entries)
        own = own_slots(positions_b1), kv_bsx, entries_bwx, jax.tree.map(own_slots, index)
        out_b1hx = slots_to_heads(by_slot(self._attend_cache, heads_to_slots(q_b1hx), *own))
        return self._out(out_b1hx, places.rope), LayerCache(kv_bsx, compressed, keys)

    def _project(self, x_btd, rope):
        """Return the latent of queries [b t q], queries [b t h x], and keys [b t x]."""
        # The backward pass recomputes norms and up-projections from here, see remat_policies
        latent_btq = self.q_norm(save_for_backward(dot("btd,dq->btq", x_btd, self.w_q_down)))
        # A norm of each head, without a scale
        eps = self.config.rms_norm_eps
        q_bthx = rms_norm(dot("btq,qhx->bthx", latent_btq, self.w_q_up), 1.0, eps)
        kv_btx = self.kv_norm(save_for_backward(dot("btd,dx->btx", x_btd, self.w_kv)))
        kv_btx = self._rounded(apply_rope_last(kv_btx[:, :, None], *rope)[:, :, 0])
        return latent_btq, apply_rope_last(q_bthx, *rope), kv_btx

    def _rounded(self, keys):
        return (
            fp8_keys(keys, self.config.qk_rope_head_dim) if self.config.release_rounding else keys
        )

    def _entries(self, x_btd, latent_btq, places):
        """Compute the compressed keys of rows, and which of them queries attend to.

        Returns:
            The Entries, None without a compressor; the Index, None without an indexer; and the
            CompressorCaches of both, as far as there are any.
        """
        if not self.kind.rate:
            return None, None, ()
        windows = places.entries.windows
        compressed = self.compressor(x_btd, places.entries)
        entries_bwx = self._rounded(compressed.entries)
        if self.kind.attention != CSA:
            return Entries(entries_bwx, windows, None), None, (compressed,)
        index, keys = self.indexer(x_btd, latent_btq, places)
        selected = indexer.select(self.config, index, places.segment_ids, windows)
        return Entries(entries_bwx, windows, selected), index, (compressed, keys)

    def _attend_cache(self, q_b1hx, positions_b1, kv_bsx, entries_bwx, index):
        """Attend from one query of each sequence to a ring of tokens and to entries: [b 1 h x]."""
        ring = kv_bsx.shape[1]
        age_bs = (positions_b1 - jnp.arange(ring)) % ring
        # No token is older than its text
        seen = [(kv_bsx, (age_bs <= positions_b1)[:, None])]
        if entries_bwx is not None:
            numbers = jnp.arange(entries_bwx.shape[1])
            windows = document_windows(numbers[None], self.kind.rate)
            ones = jnp.ones_like(positions_b1)
            seen_b1w = seen_entries(ones, positions_b1, windows)
            seen.append(indexer.seen_and_selected(self.config, index, entries_bwx, seen_b1w))
        return attend_seen(q_b1hx, self.sink_h, *seen, scale=self.config.head_dim**-0.5)

    def _out(self, out_bthx, rope):
        """Project the heads of each group to a low rank, and all groups to [b t d]."""
        # Values are rotated as keys are: turning back by the query's angle leaves their distance
        cos, sin = rope
        out_bthx = apply_rope_last(out_bthx, cos, -sin)
        b, t, h, x = out_bthx.shape
        # p: a head of a group
        out_btgpx = jnp.reshape(out_bthx, (b, t, self.config.o_groups, -1, x))
        out_btgc = dot("btgpx,gpxc->btgc", out_btgpx, self.w_out_down)
        return dot("btgc,gcd->btd", out_btgc, self.w_out_up)
