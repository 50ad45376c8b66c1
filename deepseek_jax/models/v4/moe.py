"""DeepSeek-V4's experts: chosen by a router, or by a table of token ids (arXiv:2606.19348).

Tests: tests/models/v4/test_mistakes.py, tests/models/v4/test_parity.py.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.layers import MLP_AXES, weight
from deepseek_jax.models.moe import Routing
from deepseek_jax.models.remat_policies import saves_marked
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import experts_down, experts_up, swiglu
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.routing import (
    affinities,
    expert_load,
    route,
    route_by_table,
    sequence_balance,
)
from deepseek_jax.parallel.bounded import ExpertProducts
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel

SCORING = "sqrtsoftplus"


class MoE(nn.Module):
    """Routed experts and one shared expert, all with clamped SwiGLU. No token is dropped.

    Attributes:
        config: The model.
        has_table: True if a table chooses the experts of a token by its id. The router weighs them
            all the same.
    """

    config: V4Config
    has_table: bool

    @nn.compact
    def __call__(self, x_btd, tokens, segment_ids):
        """Send each token to its experts and add up what they return.

        Args:
            x_btd: [b t d].
            tokens: int32[b t], the ids; a layer without a table does not read them.
            segment_ids: int32[b t], 0 on padding.

        Returns:
            The output [b t d], and the models.moe.Routing of tokens with segment_ids other than 0.
        """
        cfg = self.config
        d, e, f = cfg.hidden_size, cfg.n_routed_experts, cfg.moe_intermediate_size
        w_router = weight(self, "router", embed=d, experts=e)
        w_gate_up = weight(self, "gate_up", experts=e, embed=d, gate_up=2, mlp=f)
        w_down = weight(self, "down", experts=e, mlp=f, embed=d)
        # Routing is float32 in every dtype
        logits_bte = dot("btd,de->bte", x_btd.astype(jnp.float32), w_router)
        experts_bta, weights_bta = self._choose(logits_bte, tokens)
        axes = ("experts", *MLP_AXES[3]), ("experts", "mlp", "embed")
        down = functools.partial(experts_down, limit=cfg.swiglu_limit)
        kernels = Kernels((w_gate_up, w_down), axes, cfg.dtype)
        y_btd, overflows = expert_parallel(
            ExpertProducts(experts_up, down),
            x_btd,
            experts_bta,
            weights_bta,
            kernels,
            buffer=cfg.expert_buffer,
            saves_hidden=saves_marked(cfg.remat),
        )
        y_btd += ClampedMLP(cfg, f, name="shared")(x_btd)
        balance = sequence_balance(
            affinities(logits_bte, SCORING),
            segment_ids,
            num_experts_per_tok=cfg.num_experts_per_tok,
        )
        # A NaN balance (an earlier layer gave NaN) makes the load NaN, so the bias update skips this layer
        load = expert_load(experts_bta, e, segment_ids > 0) + 0 * balance
        return y_btd, Routing(load, balance, overflows)

    def _choose(self, logits_bte, tokens):
        """Choose the experts int32[b t a] of all tokens, and their weights float32[b t a]."""
        cfg = self.config
        a, e = cfg.num_experts_per_tok, cfg.n_routed_experts
        if self.has_table:
            # float32, as all parameters: a gradient is taken of one tree. Ids are exact up to 2^24
            init = spread_table(e)
            table_va = weight(self, "expert_table", init=init, vocab=cfg.vocab_size, choices=a)
            return route_by_table(
                logits_bte,
                tokens,
                table_va,
                scoring_func=SCORING,
                routed_scaling_factor=cfg.routed_scaling_factor,
            )
        bias_e = weight(self, "router_bias", init=nn.initializers.zeros, experts=e)
        choose = functools.partial(
            route,
            num_experts_per_tok=a,
            scoring_func=SCORING,
            routed_scaling_factor=cfg.routed_scaling_factor,
        )
        return jax.vmap(choose, (0, None))(logits_bte, bias_e)


def spread_table(n_routed_experts: int):
    """Return the initializer of a table [v a] in which a token has a experts in turn."""

    def init(rng, shape, dtype):
        table_va = jnp.arange(shape[0] * shape[1]).reshape(shape) % n_routed_experts
        return table_va.astype(dtype)

    return init


class ClampedMLP(nn.Module):
    """A gated MLP with clamped halves, see ops.gated_mlp.swiglu.

    Attributes:
        config: The model.
        width: The MLP's intermediate size.
    """

    config: V4Config
    width: int

    @nn.compact
    def __call__(self, x_btd):
        """Apply the MLP to x [b t d]."""
        d = self.config.hidden_size
        w_gate_up = weight(self, "gate_up", embed=d, gate_up=2, mlp=self.width)
        w_down = weight(self, "down", mlp=self.width, embed=d)
        hidden_btzf = save_for_backward(dot("btd,dzf->btzf", x_btd, w_gate_up))
        gate_btf, up_btf = jnp.unstack(hidden_btzf, axis=2)
        return dot("btf,fd->btd", swiglu(gate_btf, up_btf, self.config.swiglu_limit), w_down)
