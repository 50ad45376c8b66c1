"""Gated MLPs with SwiGLU: one for all tokens, or one per expert on the expert's own tokens."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_grouped import expert_block, grouped_fp8
from deepseek_jax.ops.remat import save_for_backward


def swiglu(gate, up, limit: float | None = None, weight=1.0):
    """Return silu(gate) * up (arXiv:2002.05202) times a weight, in float32, rounded once.

    Args:
        gate: [... f].
        up: [... f].
        limit: Clamp gate to at most this and up to this size (arXiv:2606.19348). None: no clamp.
        weight: Float32, of a shape that broadcasts.
    """
    if limit is not None:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    product = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32) * weight
    return product.astype(gate.dtype)


def gated_mlp(x, w_gate_up, w_down):
    """Apply a gated MLP, down(swiglu(gate(x), up(x))): x [... d] -> [... d].

    Args:
        x: [... d].
        w_gate_up: [d 2f] or [d 2 f].
        w_down: [f d].
    """
    rows_md = x.reshape(-1, x.shape[-1])
    w_gate_up = w_gate_up if w_gate_up.ndim == 2 else w_gate_up.reshape(len(w_gate_up), -1)
    gate_mf, up_mf = jnp.split(dot("md,dz->mz", rows_md, w_gate_up), 2, axis=-1)
    return dot("mf,fd->md", swiglu(gate_mf, up_mf), w_down).reshape(x.shape)


def run_sorted(kernels, rows_rzx, rows_per_expert):
    """Apply experts' gated MLPs to few rows that are sorted by expert: [r z x] -> [r z x].

    Args:
        kernels: Gate and up, [e d 2f] or [e d 2 f], and down, [e f d].
        rows_rzx: Rows, with their d numbers as [z x].
        rows_per_expert: int32[e]. Results of rows past their sum are undefined.
    """
    w_gate_up, w_down = kernels
    (e, f, _), (z, x) = w_down.shape, rows_rzx.shape[1:]
    if e == 1:
        hidden_rf = dot("rzx,zxf->rf", rows_rzx, w_gate_up.reshape(z, x, 2 * f))
        gate_rf, up_rf = jnp.split(hidden_rf, 2, axis=-1)
        return dot("rf,fd->rd", swiglu(gate_rf, up_rf), w_down[0]).reshape(rows_rzx.shape)
    w_gate_up = w_gate_up.reshape(e, z * x, 2 * f)
    hidden_rf = grouped.grouped_matmul(rows_rzx.reshape(-1, z * x), w_gate_up, rows_per_expert)
    gate_rf, up_rf = jnp.split(hidden_rf, 2, axis=-1)
    out_rd = grouped.grouped_matmul(swiglu(gate_rf, up_rf), w_down, rows_per_expert)
    return out_rd.reshape(rows_rzx.shape)


def run_experts(x_md, experts_ma, weights_ma, kernels, *, fp8: bool, limit: float | None = None):
    """Return each token's weighted sum over its experts' gated MLPs: [m d].

    A row is weighed before the down product, which is linear. Then the gradient of a weight is a
    dot product of hidden rows, and the backward pass needs no expert's output.

    Args:
        experts_ma: int32.
        weights_ma: float32.
        kernels: Gate and up, [e d 2 f] or [e d 2f], and down, [e f d].
        fp8: Multiply with ops.fp8_grouped.
        limit: See `swiglu`.
    """
    matmul, up_matmul = grouped.grouped_matmul, grouped.grouped_matmul
    w_gate_up, w_down = kernels
    e, d = w_gate_up.shape[:2]
    block = (expert_block if fp8 else grouped.block_size)(experts_ma.size, e)
    if fp8:
        matmul = functools.partial(grouped_fp8, block=block)
        # Scales as published for these inputs (arXiv:2412.19437, section 3.3.3). Parts: gate and up
        up_matmul = functools.partial(matmul, power_of_two=True, num_parts=2)
    layout = grouped.expert_layout(experts_ma, e, block)
    rows_rd = grouped.rows_by_expert(x_md, layout)
    hidden_rz = up_matmul(rows_rd, w_gate_up.reshape(e, d, -1), layout.rows_per_expert)
    gate_rf, up_rf = jnp.split(save_for_backward(hidden_rz), 2, axis=-1)
    weight_r1 = grouped.weight_of_rows(weights_ma, layout)[:, None]
    out_rd = matmul(swiglu(gate_rf, up_rf, limit, weight_r1), w_down, layout.rows_per_expert)
    return grouped.summed(out_rd, layout)
