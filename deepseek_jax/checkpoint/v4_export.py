"""Parameters of DeepSeek-V4 as a Hugging Face folder: bfloat16 or float32, or the bytes they came from."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepseek_jax.checkpoint.folder import check_new
from deepseek_jax.checkpoint.hf_config import read_json
from deepseek_jax.checkpoint.hf_export import decodes_to, gather, write_tensors
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.tree import checked_by_path
from deepseek_jax.checkpoint.v4_config import v4_config_json
from deepseek_jax.checkpoint.v4_files import E8M0, V4Files
from deepseek_jax.checkpoint.v4_import import drafter_names
from deepseek_jax.checkpoint.v4_names import spelling_of, tensors
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops import fp4, fp8
from deepseek_jax.trees import PyTree


def save_v4(
    folder: str | Path,
    config: V4Config,
    params: PyTree,
    like: str | Path | None = None,
    max_shard_size: int | str = "5GB",
    files: dict[str, bytes] | None = None,
) -> None:
    """Write a folder of DeepSeek-V4 with the released names, which transformers reads too.

    One tensor after the other is decoded or quantised, so the host never has a second copy of the model.
    If writing fails, nothing stays there.

    Args:
        folder: Absent or empty.
        config: The model.
        params: The tree of models.v4.decoder.init_params, unboxed, in any float dtypes. The files have the
            same dtypes; tables of experts are int64, as in transformers.
        like: The folder that params came from, or its name on the hub. With it, each tensor is stored as it
            is there: a tensor that still equals the one of `like` with the same codes and scales, and a
            changed one in FP4 or FP8 with new scales. A drafter (DSpark), config.json and the
            files of hf_export.COPIED are copied.
        max_shard_size: Largest size of a file: an int of bytes, or a str such as "5GB".
        files: {name: content} of the tokenizer that the parameters carry. It replaces the tokenizer of
            `like`.

    Raises:
        ValueError: The folder is not empty, params do not fit config, or `like` has another config or other
            shapes. This is raised before anything is written.
    """
    check_new(folder)
    like_folder = checkpoint_path(like) if like else None
    like_json = read_json(like_folder) if like_folder else None
    leaves = checked_by_path(config, params)
    config_fields = v4_config_json(config, dtype=leaves["embedding"].dtype, like=like_json)
    export = _Export(config, leaves, V4Files(like_folder) if like_folder else None)
    write_tensors(folder, export.plan, export, config_fields, like_folder, max_shard_size, files)


class _Export:
    """The tensors to write, which are encoded one at a time by a call with a name.

    Attributes:
        plan: {name: ShapeDtypeStruct} of all tensors, scales included.
    """

    def __init__(self, config: V4Config, leaves: dict[str, Any], like: V4Files | None):
        self._leaves, self._like = leaves, like
        spelling = "released" if like is None else spelling_of(like.names)
        self._places = tensors(config, spelling)
        self.plan: dict[str, jax.ShapeDtypeStruct] = {}
        self._quantised: dict[str, str] = {}
        for name, places in self._places.items():
            self._plan(name, places[0])
        for name in sorted(drafter_names(like)) if like else ():
            self._plan_as_stored(name, like)
        # A tensor and its scale are requested one after the other: encode both once
        self._encoded = functools.lru_cache(maxsize=1)(self._encode)

    def __call__(self, name):
        is_scale = name in self._quantised
        return self._encoded(self._quantised.get(name, name))[is_scale]

    def _plan(self, name, place):
        like, shape = self._like, place.turn.shape
        if like is None or name not in like:
            is_table = place.path.endswith("expert_table")
            dtype = np.dtype(np.int64) if is_table else self._leaves[place.path].dtype
            self.plan[name] = jax.ShapeDtypeStruct(shape, dtype)
            return
        if like.shape(name) != shape:
            raise ValueError(
                f"{name} has shape {list(shape)}, but {list(like.shape(name))} in {like.where(name)}; "
                "`like` must be the folder that the parameters came from"
            )
        self._plan_as_stored(name, like)

    def _plan_as_stored(self, name, like):
        names = [name] if like.tile(name) is None else [name, like.scale_name(name)]
        for stored in names:
            self.plan[stored] = jax.ShapeDtypeStruct(like.stored_shape(stored), like.dtype(stored))
        self._quantised |= dict.fromkeys(names[1:], name)

    def _encode(self, name):
        """Return (tensor, scale or None), in the bytes of `like` if they decode to the same."""
        like = self._like
        stored = None if like is None or name not in like else like.read(name)
        # Only a drafter's tensors are no parameters
        if name not in self._places:
            return stored
        ours = gather(self._leaves, self._places[name])
        if stored is None:
            return ours.astype(self.plan[name].dtype), None
        tensor, scale = stored
        if decodes_to(tensor, None if scale is None else scale.astype(np.float32), ours):
            return stored
        if scale is None:
            return ours.astype(tensor.dtype), None
        codes, scale = (_quantize_fp4 if tensor.dtype == np.int8 else _quantize_fp8)(ours)
        return np.asarray(codes), np.asarray(scale).astype(E8M0)


_quantize_fp4 = jax.jit(fp4.quantize)


@jax.jit
def _quantize_fp8(weights):
    return fp8.quantize(weights, fp8.BLOCK, power_of_two=True)
