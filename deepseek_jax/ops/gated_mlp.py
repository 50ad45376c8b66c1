"""Gated MLPs with SwiGLU: one for all tokens, or one per expert on the expert's own tokens."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_grouped import grouped_fp8
from deepseek_jax.ops.grouped_matmul import grouped_matmul


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
    """Apply experts' gated MLPs to few rows that are sorted by expert, without weights.

    One expert takes every row: rows past its own cost less than a grouped product.

    Args:
        kernels: Gate and up, [e d 2 f] or [e d 2f], and down, [e f d].
        rows_rzx: [r z x], with z * x = d.
        rows_per_expert: int32[e]. Results of rows past their sum are undefined.

    Returns:
        An array of rows' shape.
    """
    w_gate_up, w_down = kernels
    z, x = rows_rzx.shape[1:]
    if len(w_down) > 1:
        hidden_rz = experts_up(w_gate_up, rows_rzx.reshape(-1, z * x), rows_per_expert)
        return experts_down(w_down, hidden_rz, rows_per_expert).reshape(rows_rzx.shape)
    hidden_rf = dot("rzx,zxf->rf", rows_rzx, w_gate_up.reshape(z, x, -1))
    gate_rf, up_rf = jnp.split(hidden_rf, 2, axis=-1)
    return dot("rf,fd->rd", swiglu(gate_rf, up_rf), w_down[0]).reshape(rows_rzx.shape)


def experts_up(w_gate_up, rows_rd, rows_per_expert, *, block: int = 1, fp8: bool = False):
    """Apply the gate and up products of experts' gated MLPs to rows that are sorted by expert.

    Args:
        w_gate_up: [e d 2 f] or [e d 2f].
        rows_rd: [r d].
        rows_per_expert: int32[e], multiples of block. Results of rows past their sum are undefined.
        block: The block size of the rows' ExpertLayout.
        fp8: Multiply with ops.fp8_grouped.

    Returns:
        [r 2f].
    """
    w_edz = w_gate_up.reshape(*w_gate_up.shape[:2], -1)
    if not fp8:
        return grouped_matmul(rows_rd, w_edz, rows_per_expert)
    # Scales as published for these inputs (arXiv:2412.19437, section 3.3.3). Parts: gate and up
    return grouped_fp8(rows_rd, w_edz, rows_per_expert, block=block, power_of_two=True, num_parts=2)


def experts_down(
    w_down,
    hidden_rz,
    rows_per_expert,
    weight_r1=1.0,
    *,
    block: int = 1,
    fp8: bool = False,
    limit: float | None = None,
):
    """Apply SwiGLU and the down product of experts' gated MLPs, and weigh the results.

    A row is weighed before the down product, which is linear. Then the gradient of a weight is a
    dot product of hidden rows, and the backward pass needs no expert's output.

    Args:
        w_down: [e f d].
        hidden_rz: [r 2f], from `experts_up`.
        rows_per_expert: See `experts_up`.
        weight_r1: Float32, the weight of each row.
        block: See `experts_up`.
        fp8: See `experts_up`.
        limit: See `swiglu`.

    Returns:
        [r d].
    """
    matmul = functools.partial(grouped_fp8, block=block) if fp8 else grouped_matmul
    gate_rf, up_rf = jnp.split(hidden_rz, 2, axis=-1)
    return matmul(swiglu(gate_rf, up_rf, limit, weight_r1), w_down, rows_per_expert)
