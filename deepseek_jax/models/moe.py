"""DeepSeekMoE: experts that all tokens share, and routed experts by choice (arXiv:2401.06066)."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import GatedMLP, weight
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import run_experts
from deepseek_jax.ops.routing import (
    affinities,
    expert_load,
    expert_weights,
    route,
    sequence_balance,
    with_kept,
)
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel


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
        all tokens int32[b t a]).

        Without segment_ids, when decoding, x may be [b d] too, and Routing is None. kept: uint16[b t a] of
        ops.routing.with_kept, or None.
        """
        cfg = self.config
        e, d, f = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size
        w_router = weight(self, "router", embed=d, experts=e)
        bias_e = None
        if cfg.has_router_bias:
            bias_e = weight(self, "router_bias", init=nn.initializers.zeros, experts=e)
        w_gate_up = weight(self, "gate_up", experts=e, embed=d, gate_up=2, mlp=f)
        w_down = weight(self, "down", experts=e, mlp=f, embed=d)

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
                (w_gate_up, w_down),
                (("experts", "embed", "gate_up", "mlp"), ("experts", "mlp", "embed")),
                # FP8 rounds the masters themselves
                "float32" if cfg.fp8 else cfg.dtype,
            ),
            buffer=cfg.expert_buffer,
        )
        y = y.reshape(x.shape)
        if cfg.n_shared_experts:
            # Eq. 12: shared experts take every token, without a weight. Side by side they are one wider MLP
            y += GatedMLP(cfg, cfg.n_shared_experts * f, name="shared")(x)
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
        return y, routing, experts_bta


def choose_experts(config: ModelConfig, logits_bte, bias_e, kept):
    """(experts int32[b t a], weights float32[b t a]) of all tokens. bias_e, kept: or None; see MoE."""
    choose = functools.partial(
        route,
        num_experts_per_tok=config.num_experts_per_tok,
        n_group=config.n_group,
        topk_group=config.topk_group,
        scoring_func=config.scoring_func,
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
    )
    experts_bta, weights_bta = jax.vmap(choose, (0, None))(logits_bte, bias_e)
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
