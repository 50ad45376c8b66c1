"""FLOPs (multiplications and additions) of one operation, by the shapes of its operands.

Tests: tests/launch/planning/test_hlo.py.
"""

import functools
import math
import re

import numpy as np

from launch.planning.hlo_text import Computation, Operation

# The label of a grouped product of bfloat16; with other operands, the start of the label
GROUPED = "grouped matmul"
FP8 = "f8e4m3fn"


def operation_flops(computation: Computation, operation: Operation):
    """Return (label, FLOPs) of a product, a convolution or a Pallas kernel; None for all else.

    The label of a matrix product is its operands' dtypes. FLOPs are None for a kernel that is not
    known here and gives no estimate.
    """
    if operation.kind in ("dot", "convolution"):
        lhs, rhs = (computation[name].result[0] for name in operation.operands[:2])
        count_flops = _dot if operation.kind == "dot" else _convolution
        return f"{lhs.dtype} x {rhs.dtype}", count_flops(operation, lhs.shape, rhs.shape)
    if operation.attribute(r'custom_call_target="(tpu_custom_call)"'):
        return _kernel(computation, operation)
    return None


def _dot(operation, lhs_shape, rhs_shape):
    contracted_dims = operation.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    contracted_size = math.prod(lhs_shape[int(dim)] for dim in contracted_dims.split(",") if dim)
    return 2 * math.prod(operation.result[0].shape) * contracted_size


def _convolution(operation, lhs_shape, rhs_shape):
    """Return the FLOPs of a convolution.

    They are 2 for each output feature, batch, input feature of the kernel, and pair of positions
    that meet. On TPU every matrix product is a convolution. A product's batch and further
    contracted dimensions are then positions, with strides and dilations under which only the right
    pairs meet.
    """
    labels = operation.attribute(r"dim_labels=(\w+->\w+)")
    lhs_labels, rhs_labels, out_labels = re.split(r"_|->", labels)
    out_shape = operation.result[0].shape
    total = 2 * rhs_shape[rhs_labels.index("i")]
    total *= out_shape[out_labels.index("b")] * out_shape[out_labels.index("f")]
    window = operation.attribute(r"window=\{([^}]*)\}") or ""
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", window))
    for dim in range(len(lhs_shape) - 2):
        steps = [_at(window, key, dim, "1") for key in ("stride", "lhs_dilate", "rhs_dilate")]
        total *= _meetings(
            lhs_shape[lhs_labels.index(str(dim))],
            rhs_shape[rhs_labels.index(str(dim))],
            out_shape[out_labels.index(str(dim))],
            *map(int, steps),
            int(_at(window, "pad", dim, "0_0").split("_")[0]),
        )
    return total


def _at(window, key, dim, default):
    return window[key].split("x")[dim] if key in window else default


@functools.lru_cache(maxsize=2**12)
def _meetings(size, kernel_size, num_places, stride, left_dilation, right_dilation, padding):
    """Count pairs (a place of the window, a position of the kernel) that meet an element.

    A pair that meets padding or a gap does not count.
    """
    positions = (
        np.arange(num_places)[:, None] * stride + np.arange(kernel_size) * right_dilation - padding
    )
    is_inside = (positions >= 0) & (positions <= (size - 1) * left_dilation)
    return int((is_inside & (positions % left_dilation == 0)).sum())


def _kernel(computation, operation):
    op_name = operation.attribute(r'op_name="([^"]*)"') or ""
    label = re.sub(r"\.\d+$", "", operation.name)
    operands = computation.arrays(operation.operands)
    operands = [array for array in operands if _is_float(array) and len(array.shape) > 1]
    if not any(_is_float(x) for x in operation.result):
        # This kernel only makes lists of tiles for another kernel
        return None
    estimate = operation.attribute(r'"cost_estimate":\{"flops":"(\d+)"')
    if fp8 := re.search(r"fp8_(product|t?gmm)", label + op_name):
        dtypes = f"{FP8} x {FP8}"
        return dtypes if fp8[1] == "product" else f"{GROUPED}, {dtypes}", int(estimate)
    if re.search(r"gmm|ragged.dot", label + op_name):
        flops = _grouped(operands, operation.result)
        if flops is not None:
            return GROUPED, flops
    phase = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", label + op_name)
    if phase and len(operands) > 2:
        return f"splash attention {phase[1]}", _splash(phase[1], operands, operation.result)
    return label, estimate and int(estimate)


def _is_float(array):
    return array.dtype.startswith(("f", "bf"))


def _grouped(operands, result):
    """Return the FLOPs of a grouped product, 2 r d f; None for other shapes.

    Each of r rows, filled or not, meets the matrix [d f] of one group.
    """
    shapes = [array.shape for array in operands]
    out_shape = result[0].shape
    if len(out_shape) == 2 and sorted(map(len, shapes)) == [2, 3]:
        rows_shape = next(shape for shape in shapes if len(shape) == 2)
        return 2 * math.prod(rows_shape) * out_shape[1]
    # A product over the rows: [r d] or [d r], and [r f] -> [groups d f]
    if len(out_shape) == 3 and list(map(len, shapes)) == [2, 2]:
        return 2 * math.prod(shapes[0]) * out_shape[2]
    return None


def _splash(phase, operands, result):
    """Return the FLOPs of causal attention, half of the square.

    The text does not say which mask a kernel has. FLOPs are counted in products over the keys'
    width x or the values' width u. The forward kernel computes scores and outputs. The dq kernel
    computes scores, and gradients of weights and queries. The dkv kernel computes scores, and
    gradients of weights, values and keys. If dkv is fused, it computes gradients of queries too,
    which then have one more dimension, of blocks of keys.
    """
    queries, keys, values = (array.shape for array in operands[:3])
    x, u = queries[-1], values[-1]
    is_fused = any(len(array.shape) > len(queries) for array in result)
    width = {"fwd": x + u, "dq": 2 * x + u, "dkv": 2 * x + 2 * u + is_fused * x}[phase]
    pairs = math.prod(queries[:-1]) * keys[-2] / 2
    return 2 * pairs * width
