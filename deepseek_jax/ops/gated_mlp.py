"""Gated MLPs with SwiGLU: one for all tokens, or one per expert on the expert's own tokens."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_grouped import grouped_fp8
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


def run_few(kernels, rows_rzx, rows_per_expert):
    """Apply experts' gated MLPs to few rows, as run_experts does, without weights.

    One expert takes every row: rows past its own cost less than a grouped product.
    """
    w_gate_up, w_down = kernels
    if len(w_down) > 1:
        return run_experts(kernels, rows_rzx, rows_per_expert)
    z, x = rows_rzx.shape[1:]
    hidden_rf = dot("rzx,zxf->rf", rows_rzx, w_gate_up.reshape(z, x, -1))
    gate_rf, up_rf = jnp.split(hidden_rf, 2, axis=-1)
    return dot("rf,fd->rd", swiglu(gate_rf, up_rf), w_down[0]).reshape(rows_rzx.shape)


def run_experts(
    kernels,
    rows,
    rows_per_expert,
    weight_r1=1.0,
    *,
    block: int = 1,
    fp8: bool = False,
    limit: float | None = None,
):
    """Apply experts' gated MLPs to rows that are sorted by expert, and weigh the results.

    A row is weighed before the down product, which is linear. Then the gradient of a weight is a
    dot product of hidden rows, and the backward pass needs no expert's output.

    Args:
        kernels: Gate and up, [e d 2 f] or [e d 2f], and down, [e f d].
        rows: [r d], or [r z x] with z * x = d.
        rows_per_expert: int32[e], multiples of block. Results of rows past their sum are undefined.
        weight_r1: Float32, the weight of each row.
        block: The block size of the rows' ExpertLayout.
        fp8: Multiply with ops.fp8_grouped.
        limit: See `swiglu`.

    Returns:
        An array of rows' shape.
    """
    matmul, up_matmul = grouped.grouped_matmul, grouped.grouped_matmul
    if fp8:
        matmul = functools.partial(grouped_fp8, block=block)
        # Scales as published for these inputs (arXiv:2412.19437, section 3.3.3). Parts: gate and up
        up_matmul = functools.partial(matmul, power_of_two=True, num_parts=2)
    w_gate_up, w_down = kernels
    e, d = w_gate_up.shape[:2]
    hidden_rz = up_matmul(rows.reshape(-1, d), w_gate_up.reshape(e, d, -1), rows_per_expert)
    gate_rf, up_rf = jnp.split(save_for_backward(hidden_rz), 2, axis=-1)
    out_rd = matmul(swiglu(gate_rf, up_rf, limit, weight_r1), w_down, rows_per_expert)
    return out_rd.reshape(rows.shape)
