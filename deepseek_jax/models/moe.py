"""DeepSeekMoE: experts that all tokens share, and routed experts by choice (arXiv:2401.06066)."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import MLP_AXES, GatedMLP, mlp_split, weight
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import gated_mlp, run_experts, run_sorted
from deepseek_jax.ops.routing import (
    affinities,
    expert_load,
    expert_weights,
    route,
    sequence_balance,
    with_kept,
)
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel
from deepseek_jax.parallel.few_tokens import (
    Experts,
    Split,
    few_tokens,
    has_few_tokens,
    rows_split,
)


class Routing(NamedTuple):
    """Statistics of the routing in one layer, or in each layer with a leading axis l.

    load: float32[e], real tokens per expert. balance: float32[], see ops.routing.sequence_balance. overflows:
    float32[], how often tokens overflowed a buffer of parallel.dispatch.expert_parallel; None without one.
    """

    load: jax.Array
    balance: jax.Array
    overflows: jax.Array | None


class MoE(nn.Module):
    """Dropless mixture of gated MLPs (arXiv:2412.19437, eqs. 12-16): no token is dropped by its experts."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, segment_ids=None, kept=None):
        """x [b t d] -> ([b t d], Routing of the tokens whose segment_ids int32[b t] is not 0, the experts of
        all tokens int32[b t a], None).

        Without segment_ids, when decoding, x may be [b d] too, and Routing is None; where each device has few
        tokens, the last result is their rounds int32[devices], see parallel.few_tokens. kept: uint16[b t a]
        of ops.routing.with_kept, or None.
        """
        cfg = self.config
        e, d, f = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size
        w_router = weight(self, "router", embed=d, experts=e)
        bias_e = None
        if cfg.has_router_bias:
            bias_e = weight(self, "router_bias", init=nn.initializers.zeros, experts=e)
        w_gate_up = weight(self, "gate_up", experts=e, embed=d, gate_up=2, mlp=f)
        w_down = weight(self, "down", experts=e, mlp=f, embed=d)
        # In a rollout the halves of gate and up are one axis, see rollout.weights
        axes = ("experts", *MLP_AXES[w_gate_up.ndim - 1]), ("experts", "mlp", "embed")
        shared = None
        if cfg.n_shared_experts:
            # Eq. 12: shared experts take every token, without a weight. Side by side they are one wider MLP
            shared = GatedMLP(cfg, cfg.n_shared_experts * f, name="shared")
        routed = Split((w_gate_up, w_down), axes)
        if segment_ids is None and kept is None and not cfg.fp8 and has_few_tokens(x):
            return self._token_step(x, (w_router, bias_e), routed, shared)
        # Each device has its own part of both halves: gathered as one axis, gate and up would be mixed
        assert w_gate_up.ndim == 4 or rows_split(x)

        x_btd = x if x.ndim == 3 else x[:, None]
        # Routing is float32 in every dtype. b and t stay two axes: either may be split over devices
        logits_bte = dot("btd,de->bte", x_btd.astype(jnp.float32), w_router)
        experts_bta, weights_bta = choose_experts(cfg, logits_bte, bias_e, kept)
        y, overflows = expert_parallel(
            functools.partial(run_experts, fp8=cfg.fp8),
            x_btd,
            experts_bta,
            weights_bta,
            Kernels(
                routed.arrays,
                routed.axes,
                # FP8 rounds the masters themselves
                "float32" if cfg.fp8 else cfg.dtype,
            ),
            buffer=cfg.expert_buffer,
        )
        y = y.reshape(x.shape)
        if shared is not None:
            y += shared(x)
        routing = None
        if segment_ids is not None:
            # Eqs. 17-20 are of the affinities, before bias and groups
            balance = sequence_balance(
                affinities(logits_bte, cfg.scoring_func),
                segment_ids,
                num_experts_per_tok=cfg.num_experts_per_tok,
            )
            load = expert_load(experts_bta, e, segment_ids > 0)
            routing = Routing(load, balance, overflows)
        return y, routing, experts_bta, None

    def _token_step(self, x_bd, router, routed, shared):
        experts = Experts(
            choose=functools.partial(_choose, self.config),
            router=router,
            run=run_sorted,
            routed=routed,
            beside=gated_mlp,
            shared=None if shared is None else mlp_split(*shared.weights),
        )
        y_bd, experts_ba, rounds = few_tokens(experts, x_bd)
        return y_bd, None, experts_ba[:, None], rounds


def _choose(config, x_md, w_router, bias_e):
    """(experts int32[m a], weights float32[m a]) of tokens [m d]."""
    logits_me = dot("md,de->me", x_md.astype(jnp.float32), w_router)
    return _route_of(config)(logits_me, bias_e)


def _route_of(config):
    return functools.partial(
        route,
        num_experts_per_tok=config.num_experts_per_tok,
        n_group=config.n_group,
        topk_group=config.topk_group,
        scoring_func=config.scoring_func,
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
    )


def choose_experts(config: ModelConfig, logits_bte, bias_e, kept):
    """(experts int32[b t a], weights float32[b t a]) of all tokens. bias_e, kept: or None; see MoE."""
    experts_bta, weights_bta = jax.vmap(_route_of(config), (0, None))(logits_bte, bias_e)
    if kept is None:
        return experts_bta, weights_bta
    experts_bta = with_kept(experts_bta, kept)
    weights_bta = expert_weights(
        logits_bte,
        experts_bta,
        scoring_func=config.scoring_func,
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
    )
    return experts_bta, weights_bta
