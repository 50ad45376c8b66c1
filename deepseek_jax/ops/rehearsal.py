"""Rehearsal: CPU devices compute with another machine's forms, sizes and rounding.

Kernels run in their emulations, and so does the ragged exchange. A rehearsal does not show how long
anything takes, a kernel that the machine's compiler refuses, or the order in which the machine's
products add up.
"""

import functools

import jax
from jax import lax
from jax.interpreters import mlir

from deepseek_jax.ops import platform

# Mantissa bits, of float32's 23, that the machine's default product uses
KEPT_BITS = {"tpu": 7, "gpu": 10}
DEFAULTS = (None, lax.Precision.DEFAULT)
# JAX has no public way to get a registered lowering rule
_products = mlir._platform_specific_lowerings["cpu"][lax.dot_general_p].rule


def rehearse(machine: str | None):
    """Trace and lower all later programs as for another machine.

    JAX forgets all programs that were traced before.

    Args:
        machine: One of platform.MACHINES. None: this process's devices again.

    Raises:
        ValueError: If the machine is unknown, or if this process computes on other devices than
            CPUs.
    """
    if machine is not None and machine not in platform.MACHINES:
        machines = ", ".join(platform.MACHINES)
        raise ValueError(f"machine={machine!r} cannot be rehearsed; it must be one of {machines}")
    if machine is not None and jax.default_backend() != "cpu":
        raise ValueError(
            f"machine={machine!r} is rehearsed on CPU devices, and this process has "
            f"{jax.default_backend()}s; set JAX_PLATFORMS=cpu"
        )
    platform.rehearsed = machine
    platform.taken.clear()
    rule = _products
    if machine is not None:
        rule = functools.partial(_rounded, KEPT_BITS[platform.MACHINES[machine]])
    mlir.register_lowering(lax.dot_general_p, rule, platform="cpu")
    jax.clear_caches()


def _rounded(bits, ctx, left, right, *, precision, **options):
    """Lower a product: round float32 operands, unless it asks for a higher precision."""
    precisions = precision if isinstance(precision, tuple) else (precision,)
    dtypes = {aval.dtype.name for aval in ctx.avals_in[:2]}
    if dtypes == {"float32"} and all(
        operand_precision in DEFAULTS for operand_precision in precisions
    ):
        left, right = (
            _round(bits, ctx, aval, operand)
            for aval, operand in zip(ctx.avals_in, (left, right), strict=True)
        )
    return _products(ctx, left, right, precision=precision, **options)


def _round(bits, ctx, aval, operand):
    # bfloat16 and TF32 have 8 exponent bits, as float32 has
    rounding = functools.partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=bits)
    lower = mlir.lower_fun(rounding, multiple_results=False)
    (rounded,) = lower(ctx.replace(primitive=None, avals_in=[aval], avals_out=[aval]), operand)
    return rounded
