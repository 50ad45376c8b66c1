"""Load a Hugging Face folder into sharded parameters, one tensor at a time."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from jax.sharding import Mesh

from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.hf_files import HFFiles
from deepseek_jax.checkpoint.hf_names import copies, tensors
from deepseek_jax.checkpoint.tree import abstract_params, compute_dtype, from_paths
from deepseek_jax.models import ModelConfig
from deepseek_jax.ops.fp8 import BLOCK, dequantize


def load_hf(folder: str | Path, dtype: str | None = None, mesh: Mesh | None = None):
    """Read config.json and safetensors: -> (ModelConfig, params), the tree of models.init_params, unboxed.

    dtype: of the parameters; None keeps the checkpoint's own, and turns FP8 into bfloat16 with its scales.
    The router's balancing bias is always float32. mesh: the parameters are placed on it by parallel.RULES;
    None puts them on the default device. The config computes in bfloat16 if the parameters are bfloat16, else
    in float32. transformers drops multi-token prediction layers when it saves a model: where the files have
    none, num_nextn_predict_layers is 0. Host memory beyond the parameters is a few times the largest tensor.
    Raises ValueError for a config that is not modelled here, and for a tensor that is missing, extra,
    wrongly shaped or cut short, or that must repeat another one and does not: it names tensor and file.
    """
    config, files = read_config(folder), HFFiles(folder)
    # With the dot: layer 6 must not match layer 61
    further = tuple(
        f"model.layers.{config.num_hidden_layers + i}."
        for i in range(config.num_nextn_predict_layers)
    )
    if further and not any(name.startswith(further) for name in files.names):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    places, repeated = tensors(config), copies(config)
    _check_names(config, files, places, repeated)
    for name, original in repeated.items():
        _check_copy(files, name, original)
    return load_tensors(config, files, dtype, mesh)


def load_tensors(config: ModelConfig, source, dtype: str | None = None, mesh: Mesh | None = None):
    """Fill the parameters from a source with HFFiles' dtype(name) and read(name): -> (config, params)."""
    places = tensors(config)
    wanted = abstract_params(config, _dtypes(places, source, dtype), mesh)
    params = {
        path: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        for path, leaf in wanted.items()
    }
    for name, parts in places.items():
        tensor, scale = source.read(name)
        for path, index, turn in parts:
            write = _writer(turn, wanted[path].sharding)
            start = [0 if i is None else i for i in index]
            # Wait: tensors that queue up for the device would fill the host's memory
            params[path] = jax.block_until_ready(write(params[path], tensor, scale, start))
    return dataclasses.replace(config, dtype=compute_dtype(params)), from_paths(params)


def decode(tensor, scale, dtype):
    """A stored tensor in the dtype of a parameter: FP8 times its scale in float32, then cast."""
    return (tensor if scale is None else dequantize(tensor, scale, BLOCK)).astype(dtype)


@functools.cache
def _writer(turn, sharding):
    """Jitted (parameter, tensor, scale, start) -> parameter with the tensor written into it, in place."""

    def write(parameter, tensor, scale, start):
        update = turn.to_parameter(decode(tensor, scale, parameter.dtype))
        # Stacked axes (layer, expert, half) get size 1, so that update and parameter have the same rank
        shape = iter(update.shape)
        update = update.reshape([next(shape) if axis == ":" else 1 for axis in turn.index])
        return jax.lax.dynamic_update_slice(parameter, update, start)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _dtypes(places, source, dtype):
    """The dtype of every parameter, by path: `dtype`, or what the dtypes of its stored tensors promote to."""
    dtypes = {}
    for name, parts in places.items():
        stored = source.dtype(name)
        # FP8 times its scale becomes bfloat16
        own = jnp.dtype(jnp.bfloat16) if stored.itemsize == 1 else stored
        for part in parts:
            if part.path.endswith("router_bias"):
                dtypes[part.path] = jnp.dtype(jnp.float32)
            else:
                dtypes[part.path] = jnp.dtype(
                    dtype or jnp.promote_types(own, dtypes.get(part.path, own))
                )
    return dtypes


def _check_names(config, files, places, repeated):
    """Check that every expected tensor is there, in its shape, and no other one."""
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name in [*places, *repeated]:
        if name not in files and name not in optional:
            raise ValueError(
                f"{name} is missing from {_contents(files)}, though by config.json the model has it; "
                "complete the download or correct config.json"
            )
    for name in files.names:
        shape = files.shape(name)
        if name not in places and name not in repeated:
            raise ValueError(
                f"{name} {list(shape)} in {files.where(name)} is no tensor of a {config.model_type} model "
                "with this config.json; correct config.json or take the tensor out"
            )
        expected = places[repeated.get(name, name)][0].turn.shape
        if shape != expected:
            raise ValueError(
                f"{name} in {files.where(name)} has shape {list(shape)}; "
                f"by config.json it is {list(expected)}"
            )


def _contents(files):
    """The path of the file that lists the folder's tensors: its only safetensors file, or the index."""
    one = files.folder / SAFETENSORS_SINGLE_FILE
    return one if one.exists() else files.folder / SAFETENSORS_INDEX_FILE


def _check_copy(files, name, original):
    """Check that a tensor that repeats another one has the same bytes, if it is stored at all."""
    if name in files and not np.array_equal(_bytes(files, name), _bytes(files, original)):
        raise ValueError(
            f"{name} in {files.where(name)} must equal {original} in {files.where(original)}: it stands for "
            "the same parameter"
        )


def _bytes(files, name):
    return files.read(name)[0].view(np.uint8)
