"""Grouped-query attention (arXiv:2305.13245), as Qwen and Llama use it.

Tests: tests/models/test_steps.py, tests/models/test_parity.py.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from typing_extensions import override

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, linear, weight
from deepseek_jax.ops.attention import attend_cached
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope
from deepseek_jax.parallel.context import attend_rows
from deepseek_jax.parallel.decoding import heads_to_slots, own_slots, slots_to_heads


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention, with biases on q, k and v in Qwen2 and norms per head in Qwen3."""

    config: ModelConfig

    @override
    def setup(self):
        cfg = self.config
        d, h, (k, x) = cfg.hidden_size, cfg.num_attention_heads, cfg.grouped
        self.w_q = weight(self, "q", embed=d, heads=h, head_dim=x)
        self.w_k = weight(self, "k", embed=d, kv_heads=k, head_dim=x)
        self.w_v = weight(self, "v", embed=d, kv_heads=k, head_dim=x)
        self.w_out = weight(self, "out", heads=h, head_dim=x, embed=d)
        self.linear = functools.partial(linear, cfg)
        if cfg.has_qkv_bias:
            zeros = nn.initializers.zeros
            self.b_q = weight(self, "q_bias", init=zeros, heads=h, head_dim=x)
            self.b_k = weight(self, "k_bias", init=zeros, kv_heads=k, head_dim=x)
            self.b_v = weight(self, "v_bias", init=zeros, kv_heads=k, head_dim=x)
        if cfg.has_qk_norm:
            self.q_norm = RMSNorm(cfg, x, "head_dim")
            self.k_norm = RMSNorm(cfg, x, "head_dim")

    def _out(self, spec, attended):
        # power_of_two: V3's scales for the inputs of this Linear (arXiv:2412.19437, section 3.3.3)
        return self.linear(spec, attended, self.w_out, power_of_two=True)

    def project(self, x_btd, rope):
        """Compute rotated queries and keys, and values.

        Args:
            x_btd: [b t d], the normed input.
            rope: Cosines and sines, see layers.position_tables.

        Returns:
            Queries [b t h x], keys [b t k x] and values [b t k x]; x is head_dim.
        """
        q, k, v = (
            # Saved before bias, norm and rotation, which are cheap to compute again
            save_for_backward(self.linear("btd,dhx->bthx", x_btd, w))
            for w in (self.w_q, self.w_k, self.w_v)
        )
        if self.config.has_qkv_bias:
            q, k, v = (
                (a + b.astype(a.dtype)) for a, b in ((q, self.b_q), (k, self.b_k), (v, self.b_v))
            )
        if self.config.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return apply_rope(q, *rope), apply_rope(k, *rope), v

    def __call__(self, x_btd, rope, segment_ids, branches=None):
        """Attend within rows, in training and prefill.

        Args:
            x_btd: [b t d], the normed input.
            rope: Cosines and sines, see layers.position_tables.
            segment_ids: int32[b t], 0 on padding.
            branches: An ops.branches.Branches, or None.

        Returns:
            The output [b t d], the cache entries {"k", "v"} of [z t x] each (see
            cache.empty_cache), and None in place of an indexer's loss.
        """
        q, k, v = self.project(x_btd, rope)
        remembered = {"k": _by_sequence(k), "v": _by_sequence(v)}
        out_bthx = attend_rows(q, k, v, segment_ids, branches, self.config.grouped.head_dim**-0.5)
        return self._out("bthx,hxd->btd", out_bthx), remembered, None

    def decode(self, x_bd, rope, cache, write):
        """Attend from one new token of each sequence.

        Args:
            x_bd: [b d], the normed input.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache, see cache.empty_cache.
            write: A cache.CacheWrite or cache.PositionWrite, with mask bool[b s].

        Returns:
            The output [b d], and the cache with the new tokens' keys and values.
        """
        q, k, v = map(heads_to_slots, self.project(x_bd[:, None], rope))
        entries = {"k": _by_sequence(k), "v": _by_sequence(v)}
        cache = {name: own_slots(write(cache[name], entry)) for name, entry in entries.items()}
        scale = self.config.grouped.head_dim**-0.5
        out_bhx = attend_cached(q[:, 0], cache["k"], cache["v"], scale=scale, mask=write.mask)
        return self._out("bhx,hxd->bd", slots_to_heads(out_bhx)), cache

    def extend(self, x_btd, rope, cache, write):
        """Attend from t new tokens of each sequence: `decode` for more than one token.

        Args:
            x_btd: [b t d], the normed input.
            rope: Cosines and sines of the new tokens' positions.
            cache: This layer's cache, see cache.empty_cache.
            write: A cache.PositionWrite, with mask bool[b t s].

        Returns:
            The output [b t d], and the cache with the new tokens' keys and values.
        """
        q, k, v = map(heads_to_slots, self.project(x_btd, rope))
        entries = {"k": _by_sequence(k), "v": _by_sequence(v)}
        cache = {name: own_slots(write(cache[name], entry)) for name, entry in entries.items()}

        def attend(q_bhx, mask_bs):
            scale = self.config.grouped.head_dim**-0.5
            return attend_cached(q_bhx, cache["k"], cache["v"], scale=scale, mask=mask_bs)

        # All t queries of a sequence read the same cache
        out_bthx = jax.vmap(attend, in_axes=1, out_axes=1)(q, write.mask)
        return self._out("bthx,hxd->btd", slots_to_heads(out_bthx)), cache


def _by_sequence(a):
    """Change [b t k x] to [z t x], the layout of cache.empty_cache."""
    return jnp.swapaxes(a, 1, 2).reshape(-1, a.shape[1], a.shape[3])
