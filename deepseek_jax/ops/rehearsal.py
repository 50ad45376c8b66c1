"""A run on CPU devices that computes as another machine would: its forms, its sizes and its rounding.

Kernels run in their emulations, and so does the ragged exchange. What this does not show: the time of
anything, a kernel that the machine's compiler refuses, and the order in which its products add up.
"""

import functools

import jax
from jax import lax
from jax.interpreters import mlir

from deepseek_jax.ops import platform

# Bits after the point that a default product keeps of float32 operands, which have 23
KEPT_BITS = {"tpu": 7, "gpu": 10}
DEFAULTS = (None, lax.Precision.DEFAULT)
# JAX has no public way to a rule that is registered
_products = mlir._platform_specific_lowerings["cpu"][lax.dot_general_p].rule


def rehearse(machine: str | None):
    """Trace and lower what follows as for one of platform.MACHINES; None: as for this process's devices.

    It forgets all programs that were traced before. Raises ValueError for another machine's name, and where
    this process computes on other devices than CPUs.
    """
    if machine is not None and machine not in platform.MACHINES:
        known = ", ".join(platform.MACHINES)
        raise ValueError(f"machine={machine!r} cannot be rehearsed; it must be one of {known}")
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
    """The lowering of a product: float32 operands are rounded unless it asks for a higher precision."""
    each = precision if isinstance(precision, tuple) else (precision,)
    dtypes = {aval.dtype.name for aval in ctx.avals_in[:2]}
    if dtypes == {"float32"} and all(one in DEFAULTS for one in each):
        left, right = (
            _round(bits, ctx, aval, operand)
            for aval, operand in zip(ctx.avals_in, (left, right), strict=True)
        )
    return _products(ctx, left, right, precision=precision, **options)


def _round(bits, ctx, aval, operand):
    # The exponent of bfloat16 and of TF32 has float32's 8 bits
    rounding = functools.partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=bits)
    lower = mlir.lower_fun(rounding, multiple_results=False)
    (rounded,) = lower(ctx.replace(primitive=None, avals_in=[aval], avals_out=[aval]), operand)
    return rounded
