"""FLOPs (multiplications and additions) of one operation, by the shapes of its operands."""

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
        left, right = (computation[name].result[0] for name in operation.operands[:2])
        count = _dot if operation.kind == "dot" else _convolution
        return f"{left.dtype} x {right.dtype}", count(operation, left.shape, right.shape)
    if operation.attribute(r'custom_call_target="(tpu_custom_call)"'):
        return _kernel(computation, operation)
    return None


def _dot(operation, left, right):
    contracted = operation.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    inner = math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
    return 2 * math.prod(operation.result[0].shape) * inner


def _convolution(operation, left, right):
    """Return the FLOPs of a convolution.

    They are 2 for each output feature, batch, input feature of the kernel, and pair of positions
    that meet. On TPU every matrix product is a convolution. A product's batch and further
    contracted dimensions are then positions, with strides and dilations under which only the right
    pairs meet.
    """
    labels = operation.attribute(r"dim_labels=(\w+->\w+)")
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    out = operation.result[0].shape
    total = 2 * right[right_labels.index("i")]
    total *= out[out_labels.index("b")] * out[out_labels.index("f")]
    window = operation.attribute(r"window=\{([^}]*)\}") or ""
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", window))
    for dim in range(len(left) - 2):
        steps = [_at(window, key, dim, "1") for key in ("stride", "lhs_dilate", "rhs_dilate")]
        total *= _meetings(
            left[left_labels.index(str(dim))],
            right[right_labels.index(str(dim))],
            out[out_labels.index(str(dim))],
            *map(int, steps),
            int(_at(window, "pad", dim, "0_0").split("_")[0]),
        )
    return total


def _at(window, key, dim, default):
    return window[key].split("x")[dim] if key in window else default


@functools.lru_cache(maxsize=2**12)
def _meetings(size, kernel, places, stride, left_dilation, right_dilation, padding):
    """Count pairs (a place of the window, a position of the kernel) that meet an element.

    A pair that meets padding or a gap does not count.
    """
    position = np.arange(places)[:, None] * stride + np.arange(kernel) * right_dilation - padding
    inside = (position >= 0) & (position <= (size - 1) * left_dilation)
    return int((inside & (position % left_dilation == 0)).sum())


def _kernel(computation, operation):
    where = operation.attribute(r'op_name="([^"]*)"') or ""
    label = re.sub(r"\.\d+$", "", operation.name)
    operands = computation.arrays(operation.operands)
    operands = [array for array in operands if _is_float(array) and len(array.shape) > 1]
    if not any(_is_float(x) for x in operation.result):
        # This kernel only makes lists of tiles for another kernel
        return None
    estimate = operation.attribute(r'"cost_estimate":\{"flops":"(\d+)"')
    if fp8 := re.search(r"fp8_(product|t?gmm)", label + where):
        pair = f"{FP8} x {FP8}"
        return pair if fp8[1] == "product" else f"{GROUPED}, {pair}", int(estimate)
    if re.search(r"gmm|ragged.dot", label + where):
        flops = _grouped(operands, operation.result)
        if flops is not None:
            return GROUPED, flops
    phase = re.search(r"splash_m[hq]a_(fwd|dkv|dq)", label + where)
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
    out = result[0].shape
    if len(out) == 2 and sorted(map(len, shapes)) == [2, 3]:
        rows = next(shape for shape in shapes if len(shape) == 2)
        return 2 * math.prod(rows) * out[1]
    # A product over the rows: [r d] or [d r], and [r f] -> [groups d f]
    if len(out) == 3 and list(map(len, shapes)) == [2, 2]:
        return 2 * math.prod(shapes[0]) * out[2]
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
    fused = any(len(array.shape) > len(queries) for array in result)
    width = {"fwd": x + u, "dq": 2 * x + u, "dkv": 2 * x + 2 * u + fused * x}[phase]
    pairs = math.prod(queries[:-1]) * keys[-2] / 2
    return 2 * pairs * width
