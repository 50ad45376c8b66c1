"""Multi-head latent attention (arXiv:2405.04434, section 2.1; arXiv:2412.19437, eqs. 1-11)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, attend_rows, linear, weight
from deepseek_jax.ops.attention import attend_latent
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope, yarn_mscale
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import by_slot, heads_to_slots, own_slots, slots_to_heads

# The released code uses this for the latents' norms, whatever rms_norm_eps is
LATENT_NORM_EPS = 1e-6


class MultiHeadLatentAttention(nn.Module):
    """Keys and values from one low-rank latent for each token.

    Training and prefill expand the latent to keys and values. Decoding absorbs the up-projections into the
    queries and the output instead, so that the cache holds latents only.
    """

    config: ModelConfig

    def setup(self):
        cfg = self.config
        d, h, c, r = (
            cfg.hidden_size,
            cfg.num_attention_heads,
            cfg.kv_lora_rank,
            cfg.qk_rope_head_dim,
        )
        n, u, q_rank = cfg.qk_nope_head_dim, cfg.v_head_dim, cfg.q_lora_rank
        if q_rank:
            self.w_q_down = weight(self, "q_down", embed=d, q_lora=q_rank)
            self.q_norm = RMSNorm(cfg, q_rank, "q_lora", LATENT_NORM_EPS)
            self.w_q_up = weight(self, "q_up", q_lora=q_rank, heads=h, head_dim=n + r)
        else:
            self.w_q = weight(self, "q", embed=d, heads=h, head_dim=n + r)
        # The latent, then the rotary key that all heads share
        self.w_kv_down = weight(self, "kv_down", embed=d, kv_lora=c + r)
        # Section 4.2 has this norm, eqs. 1-5 do not. The rotary key is not normed
        self.kv_norm = RMSNorm(cfg, c, "kv_lora", LATENT_NORM_EPS)
        # Apart, though checkpoints join them: decoding absorbs one into queries, the other into outputs
        self.w_k_up = weight(self, "k_up", kv_lora=c, heads=h, head_dim=n)
        self.w_v_up = weight(self, "v_up", kv_lora=c, heads=h, head_dim=u)
        self.w_out = weight(self, "out", heads=h, head_dim=u, embed=d)
        self.linear = functools.partial(linear, cfg)

    @property
    def scale(self):
        cfg, scaling = self.config, self.config.rope_scaling
        scale = (cfg.qk_nope_head_dim + cfg.qk_rope_head_dim) ** -0.5
        # The released code has this factor; eq. 10 does not
        if scaling is not None and scaling.mscale_all_dim:
            scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
        return scale

    def _out(self, spec, attended):
        # power_of_two: the published scales for the inputs of this Linear (arXiv:2412.19437, section 3.3.3)
        return self.linear(spec, attended, self.w_out, power_of_two=True)

    def _queries(self, x_btd, rope):
        """Eqs. 6-9: the part without positions [b t h n] and the rotated part [b t h r]."""
        if self.config.q_lora_rank:
            # Saved before norm and up-projection, which are computed again (arXiv:2412.19437, section 3.2.3)
            down_btq = save_for_backward(self.linear("btd,dq->btq", x_btd, self.w_q_down))
            q_bthx = self.linear("btq,qhx->bthx", self.q_norm(down_btq), self.w_q_up)
        else:
            q_bthx = self.linear("btd,dhx->bthx", x_btd, self.w_q)
        q_nope, q_rope = jnp.split(q_bthx, [self.config.qk_nope_head_dim], axis=-1)
        return q_nope, apply_rope(q_rope, *rope)

    def _latent(self, x_btd, rope):
        """Eqs. 1 and 3: the entries of the cache, c_kv [b t c] and k_rope [b t r]."""
        down = save_for_backward(self.linear("btd,dc->btc", x_btd, self.w_kv_down))
        c_kv, k_rope = jnp.split(down, [self.config.kv_lora_rank], axis=-1)
        return self.kv_norm(c_kv), apply_rope(k_rope[:, :, None], *rope)[:, :, 0]

    def project(self, x_btd, rope):
        """Expanded form: x [b t d] -> queries and keys [b t h n+r], values [b t h u]."""
        return self._expand(x_btd, rope)[0]

    def _expand(self, x_btd, rope):
        """((queries, keys, values), (c_kv, k_rope)): keys and values are expanded from the latent."""
        q_nope, q_rope = self._queries(x_btd, rope)
        # Gather the sequence here: the latent is smaller to send than the keys and values from it
        latent = self._latent(x_btd, rope)
        c_kv, k_rope = (constrain(part, ("batch", None, None)) for part in latent)
        k_nope = self.linear("bsc,chn->bshn", c_kv, self.w_k_up)
        v = self.linear("bsc,chu->bshu", c_kv, self.w_v_up)
        # Eq. 4: every head has the same rotary key
        k_rope_bthr = jnp.broadcast_to(k_rope[:, :, None], q_rope.shape)
        q = jnp.concatenate([q_nope, q_rope], axis=-1)
        k = jnp.concatenate([k_nope, k_rope_bthr], axis=-1)
        return (q, k, v), (c_kv, k_rope)

    def __call__(self, x_btd, rope, segment_ids, branches=None):
        """Expanded form: x [b t d] -> ([b t d], the cache entries c_kv [b t c] and k_rope [b t r])."""
        projected, (c_kv, k_rope) = self._expand(x_btd, rope)
        out_bthu = attend_rows(*projected, segment_ids, branches, self.scale)
        return self._out("bthu,hud->btd", out_bthu), {"c_kv": c_kv, "k_rope": k_rope}

    def decode(self, x_bd, rope, cache, write):
        """Absorbed form, from one new token: x [b d] -> ([b d], cache with the token's latent in it)."""
        q_nope, q_rope = (a[:, 0] for a in self._queries(x_bd[:, None], rope))
        c_kv, k_rope = self._latent(x_bd[:, None], rope)
        cache = self._written(cache, write, c_kv, k_rope)
        # (W c) . q = c . (W^T q): the up-projection moves from all cached keys to one query
        q_latent = dot("bhn,chn->bhc", q_nope, self.w_k_up)
        q_latent, q_rope = map(heads_to_slots, (q_latent, q_rope))
        latents = cache["c_kv"], cache["k_rope"]
        z_bhc = by_slot(self._attend_latent, q_latent, q_rope, *latents, write.mask)
        z_bhc = slots_to_heads(z_bhc)
        return self._out("bhu,hud->bd", dot("bhc,chu->bhu", z_bhc, self.w_v_up)), cache

    def _attend_latent(self, q_latent, q_rope, c_kv, k_rope, mask):
        return attend_latent(q_latent, q_rope, c_kv, k_rope, scale=self.scale, mask=mask)

    def _written(self, cache, write, c_kv, k_rope):
        """The cache with the entries of new tokens in it."""
        entries = {"c_kv": c_kv, "k_rope": k_rope}
        return {
            name: own_slots(write(cache[name], own_slots(entry))) for name, entry in entries.items()
        }

    def extend(self, x_btd, rope, cache, write):
        """decode for t new tokens a sequence: x [b t d] -> ([b t d], cache with their latents in it).

        write: PositionWrite, with mask bool[b t s].
        """
        q_nope, q_rope = self._queries(x_btd, rope)
        c_kv, k_rope = self._latent(x_btd, rope)
        cache = self._written(cache, write, c_kv, k_rope)

        q_latent = heads_to_slots(dot("bthn,chn->bthc", q_nope, self.w_k_up))
        q_rope = heads_to_slots(q_rope)
        # The queries of a sequence see one cache
        attend = jax.vmap(self._attend_latent, in_axes=(1, 1, None, None, 1), out_axes=1)
        z_bthc = by_slot(attend, q_latent, q_rope, cache["c_kv"], cache["k_rope"], write.mask)
        z_bthc = slots_to_heads(z_bthc)
        return self._out("bthu,hud->btd", dot("bthc,chu->bthu", z_bthc, self.w_v_up)), cache
