"""Read the tensors of a DeepSeek-V4 folder: FP4 and FP8 weights, and scales that are powers of two.

Tests: tests/checkpoint/test_v4_import.py.
"""

import ml_dtypes
import numpy as np
from typing_extensions import override

from deepseek_jax.checkpoint import hf_files
from deepseek_jax.ops import fp4

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
INTEGERS = np.dtype(np.int32), np.dtype(np.int64)


class V4Files(hf_files.HFFiles):
    """The safetensors files of a folder of DeepSeek-V4.

    The dtype of a tensor says how it is stored, and not the `expert_dtype` of config.json, which some
    conversions leave out: float8_e4m3fn with a scale for 128 x 128 numbers, or int8 with a scale for 32
    columns, which has two FP4 numbers in a byte. `shape` counts numbers.

    Raises:
        ValueError: As HFFiles does, and if a scale is not e8m0.
    """

    DTYPES = hf_files.DTYPES | {
        "I8": np.dtype(np.int8),
        "F8_E8M0": E8M0,
        "I32": INTEGERS[0],
        "I64": INTEGERS[1],
    }

    @override
    def shape(self, name: str):
        stored_shape = self.stored_shape(name)
        if self.tile(name) == fp4.TILE and stored_shape:
            return (*stored_shape[:-1], 2 * stored_shape[-1])
        return stored_shape

    @override
    def scale_name(self, name: str):
        return name.removesuffix("weight") + "scale"

    @override
    def tile(self, name: str) -> tuple[int, int] | None:
        return fp4.TILE if self.dtype(name) == np.int8 else super().tile(name)

    @override
    def read_rows(self, name: str, rows):
        tensor, scale = super().read_rows(name, rows)
        return tensor, None if scale is None else scale.astype(np.float32)

    @override
    def _check_scale(self, name, tile):
        super()._check_scale(name, tile)
        scale = self.scale_name(name)
        # A byte of e8m0 read as a number would give a model that runs, and writes nonsense
        if self.dtype(scale) != E8M0:
            raise ValueError(
                f"{scale} in {self.where(scale)} is {self.dtype(scale)}; the scale of {name} must be "
                f"{E8M0}, a power of two in a byte"
            )
