"""DeepSeekMoE: shared experts for all tokens, and routed experts for some (arXiv:2401.06066)."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import MLP_AXES, GatedMLP, mlp_split, weight
from deepseek_jax.models.remat_policies import saves_marked
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_grouped import expert_block
from deepseek_jax.ops.gated_mlp import experts_down, experts_up, gated_mlp, run_few
from deepseek_jax.ops.grouped_matmul import block_size
from deepseek_jax.ops.routing import (
    affinities,
    expert_load,
    expert_weights,
    route,
    sequence_balance,
    with_recorded,
)
from deepseek_jax.parallel.bounded import ExpertProducts
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel
from deepseek_jax.parallel.few_tokens import (
    Experts,
    Split,
    few_tokens,
    has_few_tokens,
    rows_split,
)


class Routing(NamedTuple):
    """Statistics of the routing in one layer, or in all layers with a leading axis l.

    Attributes:
        load: float32[e], the number of real tokens per expert.
        balance: float32[], see ops.routing.sequence_balance.
        overflows: float32[], how often tokens overflowed a buffer of
            parallel.dispatch.expert_parallel; None without a buffer.
    """

    load: jax.Array
    balance: jax.Array
    overflows: jax.Array | None


class MoE(nn.Module):
    """A mixture of gated MLPs that drops no token (arXiv:2412.19437, eqs. 12-16)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, segment_ids=None, recorded_experts=None):
        """Send each token to its experts and add up what they return.

        Args:
            x: [b t d]. In decoding, without segment_ids, [b d] is allowed too.
            segment_ids: int32[b t], 0 on padding; None in decoding.
            recorded_experts: uint16[b t a], experts that a rollout recorded, see
                ops.routing.with_recorded; or None.

        Returns:
            The output, of x's shape; the Routing of tokens with segment_ids other than 0, None
            without segment_ids; the experts of all tokens, int32[b t a]; and, where each device has
            few tokens in decoding, the rounds of their exchange, int32[devices], see
            parallel.few_tokens, else None.
        """
        cfg = self.config
        (e, _, f), d = cfg.experts, cfg.hidden_size
        w_router = weight(self, "router", embed=d, experts=e)
        bias_e = None
        if cfg.has_router_bias:
            bias_e = weight(self, "router_bias", init=nn.initializers.zeros, experts=e)
        w_gate_up = weight(self, "gate_up", experts=e, embed=d, gate_up=2, mlp=f)
        w_down = weight(self, "down", experts=e, mlp=f, embed=d)
        # In a rollout the halves of gate and up are one axis, see rollout.weights
        axes = ("experts", *MLP_AXES[w_gate_up.ndim - 1]), ("experts", "mlp", "embed")
        shared_mlp = None
        if cfg.n_shared_experts:
            # Eq. 12: shared experts take every token, without a weight. Together they are one wider MLP
            shared_mlp = GatedMLP(cfg, cfg.n_shared_experts * f, name="shared")
        routed_experts = Split((w_gate_up, w_down), axes)
        if segment_ids is None and recorded_experts is None and not cfg.fp8 and has_few_tokens(x):
            return self._token_step(x, (w_router, bias_e), routed_experts, shared_mlp)
        # In joined halves, a device's columns are its part of gate, then its part of up. Rows that do not
        # split would use the whole axis, in which parts of gate and up alternate
        assert w_gate_up.ndim == 4 or rows_split(x)

        x_btd = x if x.ndim == 3 else x[:, None]
        # Routing is float32 in every dtype. b and t stay two axes: either may be split over devices
        logits_bte = dot("btd,de->bte", x_btd.astype(jnp.float32), w_router)
        experts_bta, weights_bta = choose_experts(cfg, logits_bte, bias_e, recorded_experts)
        y, overflows = expert_parallel(
            ExpertProducts(
                functools.partial(experts_up, fp8=cfg.fp8),
                functools.partial(experts_down, fp8=cfg.fp8),
                expert_block if cfg.fp8 else block_size,
            ),
            x_btd,
            experts_bta,
            weights_bta,
            Kernels(
                routed_experts.arrays,
                routed_experts.axes,
                # FP8 rounds the master weights themselves
                "float32" if cfg.fp8 else cfg.dtype,
            ),
            buffer=cfg.expert_buffer,
            saves_hidden=saves_marked(cfg.remat),
        )
        y = y.reshape(x.shape)
        if shared_mlp is not None:
            y += shared_mlp(x)
        routing = None
        if segment_ids is not None:
            # Eqs. 17-20 use the affinities, before bias and groups
            balance = sequence_balance(
                affinities(logits_bte, cfg.scoring_func),
                segment_ids,
                num_experts_per_tok=cfg.num_experts_per_tok,
            )
            load = expert_load(experts_bta, e, segment_ids > 0)
            routing = Routing(load, balance, overflows)
        return y, routing, experts_bta, None

    def _token_step(self, x_bd, router, routed_experts, shared_mlp):
        experts = Experts(
            choose=functools.partial(_choose, self.config),
            router=router,
            run=run_few,
            routed=routed_experts,
            beside=gated_mlp,
            shared=None if shared_mlp is None else mlp_split(*shared_mlp.weights),
        )
        y_bd, experts_ba, rounds = few_tokens(experts, x_bd)
        return y_bd, None, experts_ba[:, None], rounds


def _choose(config, x_md, w_router, bias_e):
    """Choose the experts of tokens [m d]: (experts int32[m a], weights float32[m a])."""
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


def choose_experts(config: ModelConfig, logits_bte, bias_e, recorded_experts):
    """Choose the experts of all tokens, and their weights.

    Args:
        config: The model.
        logits_bte: float32[b t e], from the router.
        bias_e: float32[e], the router's balancing bias, or None.
        recorded_experts: uint16[b t a], see MoE.__call__, or None.

    Returns:
        Experts int32[b t a] and weights float32[b t a].
    """
    experts_bta, weights_bta = jax.vmap(_route_of(config), (0, None))(logits_bte, bias_e)
    if recorded_experts is None:
        return experts_bta, weights_bta
    experts_bta = with_recorded(experts_bta, recorded_experts)
    weights_bta = expert_weights(
        logits_bte,
        experts_bta,
        scoring_func=config.scoring_func,
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
    )
    return experts_bta, weights_bta
