"""Parameters as a Hugging Face folder, written one file at a time: completely or not at all."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from deepseek_jax.checkpoint.fill import decode
from deepseek_jax.checkpoint.folder import check_new, whole_folder, write_files
from deepseek_jax.checkpoint.hf_config import (
    config_json,
    read_config,
    read_json,
    scales_are_powers_of_two,
)
from deepseek_jax.checkpoint.hf_files import SCALE, HFFiles
from deepseek_jax.checkpoint.hf_names import copies, is_projection, tensors
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.tokenizer_files import is_of_tokenizer
from deepseek_jax.checkpoint.tree import checked_by_path
from deepseek_jax.checkpoint.turn import Place
from deepseek_jax.files import whole_file
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.ops.fp8 import BLOCK, quantize
from deepseek_jax.trees import PyTree

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
# Patterns of the files that are copied from `like`: no weights and no code
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "README*")
NOT_COPIED = ("config.json", "*.index.json")


def save_hf(
    folder: str | Path,
    config: ModelConfig,
    params: PyTree,
    like: str | Path | None = None,
    fp8: bool = False,
    max_shard_size: int | str = "5GB",
    files: dict[str, bytes] | None = None,
) -> None:
    """Write a Hugging Face folder for transformers: config.json, safetensors and their index.

    If writing fails, nothing stays there.

    Args:
        folder: Absent or empty.
        params: The tree of models.init_params, unboxed, in any float dtypes. The files have the
            same dtypes.
        like: The Hugging Face folder that params came from, or its name on the hub. With it, each
            tensor gets the dtype that it has there, unchanged tensors are written with the same
            bytes (FP8 scales included), config.json keeps the fields that are not modelled here,
            and the files of COPIED (tokenizer, generation_config.json) are copied.
        fp8: Quantise the projections, as DeepSeek-V3 does. New scales are powers of two if the
            scale_fmt of like's quantization_config is "ue8m0" (DeepSeek-V3.1), and for a V3.2
            without `like`.
        max_shard_size: Largest size of a file: an int of bytes, or a str such as "5GB".
        files: {name: content} of the tokenizer that the parameters carry. It replaces the tokenizer
            of `like`.

    Raises:
        ValueError: The folder is not empty, params do not fit config, or `like` has other shapes.
            This is raised before anything is written.
    """
    check_new(folder)
    like_folder = checkpoint_path(like) if like else None
    if like_folder:
        # This call only checks: its errors have the file's path
        read_config(like_folder)
    like_json = read_json(like_folder) if like_folder else None
    export = _Export(config, params, HFFiles(like_folder) if like_folder else None, fp8)
    config_fields = config_json(config, dtype=export.dtype, fp8=fp8, like=like_json)
    export.power_of_two = scales_are_powers_of_two(config_fields)
    write_tensors(folder, export.plan, export, config_fields, like_folder, max_shard_size, files)


def write_tensors(
    folder: str | Path,
    plan: dict[str, jax.ShapeDtypeStruct],
    encode: Callable[[str], np.ndarray],
    config_fields: dict,
    like_folder: Path | None,
    max_shard_size: int | str,
    files: dict[str, bytes] | None,
):
    """Write a Hugging Face folder, one file of tensors at a time.

    Args:
        folder: As in save_hf.
        plan: {name: shape and dtype} of all tensors.
        encode: Returns the tensor of a name in `plan`, when its file is written.
        config_fields: The object for config.json.
        like_folder: The folder from which the files of COPIED are copied; None for no folder.
        max_shard_size: As in save_hf.
        files: As in save_hf.
    """
    shards = split_state_dict_into_shards_factory(
        plan,
        get_storage_size=lambda leaf: leaf.size * leaf.dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    with whole_folder(folder) as partial:
        if like_folder:
            _copy_side_files(like_folder, partial, with_tokenizer=not files)
        write_files(partial, files)
        (partial / "config.json").write_text(json.dumps(config_fields, indent=2) + "\n")
        for file, names in shards.filename_to_tensors.items():
            with whole_file(partial / file) as new_path:
                save_file(
                    {name: encode(name) for name in names}, new_path, metadata={"format": "pt"}
                )
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (partial / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2) + "\n"
            )


def hf_tensors(config: ModelConfig, params: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parameters, or their gradients, as Hugging Face's tensors.

    Yields:
        (name, numpy array).
    """
    leaves = checked_by_path(config, params)
    for name, places in tensors(config).items():
        yield name, gather(leaves, places)


def _copy_side_files(like, folder, with_tokenizer):
    for path in like.iterdir():
        is_copied, is_left_out = (
            any(map(path.match, patterns)) for patterns in (COPIED, NOT_COPIED)
        )
        is_left_out = is_left_out or (is_of_tokenizer(path.name) and not with_tokenizer)
        if path.is_file() and is_copied and not is_left_out:
            path.copy(folder / path.name)


class _Export:
    """The tensors to write, which are encoded one at a time by a call with a name.

    Attributes:
        plan: {name: ShapeDtypeStruct} of all tensors, FP8 scales included.
        dtype: The embedding's dtype.
        power_of_two: Whether new scales are powers of two. Set it before the first call.
    """

    def __init__(self, config, params, like, fp8):
        self._flat, self._like, self._fp8 = checked_by_path(config, params), like, fp8
        self.power_of_two = False
        self.dtype = self._flat["embedding"].dtype
        self._places, self._originals = tensors(config), copies(config)
        self.plan: dict[str, jax.ShapeDtypeStruct] = {}
        for name, places in self._places.items():
            self._plan(name, places)
        for name, original in self._originals.items():
            # A tied head is omitted, as usual, unless `like` has one
            if (
                not config.tie_word_embeddings
                or name != "lm_head.weight"
                or (like and name in like)
            ):
                self.plan[name] = self.plan[original]
        # A tensor and its scale are requested one after the other: encode both once
        self._encoded = functools.lru_cache(maxsize=1)(self._encode)

    def __call__(self, name):
        name = self._originals.get(name, name)
        is_scale = name not in self._places
        return self._encoded(name.removesuffix(SCALE) if is_scale else name)[is_scale]

    def _plan(self, name, places):
        shape, dtype = places[0].turn.shape, self._flat[places[0].path].dtype
        if self._like and name in self._like:
            dtype = self._like.dtype(name)
            if self._like.shape(name) != shape:
                raise ValueError(
                    f"{name} has shape {list(shape)}, but {list(self._like.shape(name))} in "
                    f"{self._like.where(name)}; `like` must be the folder that the parameters came from"
                )
        if self._fp8 and is_projection(name):
            dtype = FP8
        self.plan[name] = jax.ShapeDtypeStruct(shape, dtype)
        if dtype == FP8:
            blocks = [-(-size // block) for size, block in zip(shape, BLOCK, strict=True)]
            self.plan[name + SCALE] = jax.ShapeDtypeStruct(blocks, jnp.float32)

    def _encode(self, name):
        """Return (tensor, scale or None), in the bytes of `like` if they decode to the same."""
        our_tensor, dtype = gather(self._flat, self._places[name]), self.plan[name].dtype
        if self._like and name in self._like and self._like.dtype(name) == dtype:
            tensor, scale = self._like.read(name)
            if decodes_to(tensor, scale, our_tensor):
                return tensor, scale
        if dtype == FP8:
            return tuple(np.asarray(array) for array in _quantize(our_tensor, self.power_of_two))
        return our_tensor.astype(dtype), None


def decodes_to(tensor: np.ndarray, scale: np.ndarray | None, ours: np.ndarray) -> bool:
    """Return whether a stored tensor, decoded to the dtype of `ours`, has its bytes."""
    decoded = np.asarray(_decode(tensor, scale, ours.dtype))
    # Bytes are compared, not numbers: NaN differs from itself, and -0.0 equals 0.0
    return np.array_equal(decoded.view(np.uint8), ours.view(np.uint8))


_decode = jax.jit(decode, static_argnums=2)


@functools.partial(jax.jit, static_argnums=1)
def _quantize(weights, power_of_two):
    return quantize(weights, BLOCK, power_of_two=power_of_two)


def gather(leaves: dict[str, Any], places: list[Place]) -> np.ndarray:
    """Join one tensor from the parts of the parameters that make it up."""
    views = []
    for place in places:
        block = leaves[place.path][tuple(slice(None) if i is None else i for i in place.index)]
        views.append(place.turn.to_view(np.asarray(block)))
    axis = places[0].turn.part[0]
    # The table may list the parts in another order than the tensor: sort them by their start
    order = np.argsort([place.turn.part[1] for place in places])
    tensor = np.concatenate([views[i] for i in order], axis).reshape(places[0].turn.shape)
    # safetensors writes bytes as they lie in memory, which is the wrong order for a transposed view
    return np.ascontiguousarray(tensor)
