"""Import of DeepSeek-V4's folders: check the tensors, then read them into sharded parameters."""

import dataclasses
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.fill import read_params
from deepseek_jax.checkpoint.hf_import import check_names
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.v4_config import read_v4_config
from deepseek_jax.checkpoint.v4_files import INTEGERS, V4Files
from deepseek_jax.checkpoint.v4_names import MTP_PREFIX, spelling_of, tensors
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.notebooks import plainly
from deepseek_jax.parallel.processes import say
from deepseek_jax.trees import PyTree

# Part of the names of a drafter's input, which no module of multi-token prediction has
DRAFTER = ".main_proj."


@plainly()
def load_v4(
    folder: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[V4Config, PyTree]:
    """Read the config and the parameters of a folder of DeepSeek-V4, as released or from transformers.

    The processes of the mesh call it together. Each reads its share, as in load_hf.

    Args:
        folder: Its path or its name on the hub, see locate.checkpoint_path.
        dtype: Dtype of the parameters. None keeps the dtypes of the checkpoint, and turns FP4 and FP8 with
            their scales into bfloat16, which loses nothing. The parameters of models.params.is_float32 are
            always float32.
        mesh: The mesh on which parallel.RULES place the parameters. None puts them on the default device.

    Returns:
        (V4Config, params), where params is the tree of models.v4.decoder.init_params, unboxed. The config's
        num_nextn_predict_layers is 0 if the files have no multi-token prediction: transformers drops it
        when it saves a model, and later releases have a drafter (DSpark) in its place. The drafter is
        not read, and a line says so.

    Raises:
        ValueError: The config is not modelled here, such as DeepSeek-V4.1's; a tensor is missing, extra,
            wrongly shaped or cut short; or a table sends a token to an expert that does not exist. For
            a tensor, the message has its name and its file.
    """
    path = checkpoint_path(folder)
    config, files = read_v4_config(path), V4Files(path)
    drafter = drafter_names(files)
    if drafter:
        say(
            f"{path} has a drafter (DSpark) in place of multi-token prediction: {len(drafter)} tensors below "
            f"{MTP_PREFIX} are not read, and the model has no multi-token prediction"
        )
    if drafter or not any(name.startswith(MTP_PREFIX) for name in files.names):
        config = dataclasses.replace(config, num_nextn_predict_layers=0)
    places = tensors(config, spelling_of(files.names))
    check_names("deepseek_v4", files, places, {}, drafter)
    for name, tensor_places in places.items():
        _check_integers(files, name, tensor_places[0].path.endswith("expert_table"))
        if tensor_places[0].path.endswith("expert_table"):
            _check_table(files, name, config.n_routed_experts)
    return config, read_params(config, places, files, dtype, mesh)


def drafter_names(files: V4Files) -> set[str]:
    """Return the names of a drafter's tensors, without scales; empty if the folder has no drafter."""
    below = {name for name in files.names if name.startswith(MTP_PREFIX)}
    return below if any(DRAFTER in name for name in below) else set()


def _check_integers(files, name, is_table):
    """Raise ValueError unless a table has integers, and another tensor none."""
    if (files.dtype(name) in INTEGERS) != is_table:
        kind = "integers" if is_table else "floating-point numbers"
        raise ValueError(
            f"{name} in {files.where(name)} is {files.dtype(name)}; it must have {kind}"
        )


def _check_table(files, name, n_routed_experts):
    """Raise ValueError if a table of token ids has an expert that does not exist."""
    table_va, _ = files.read(name)
    wrong = np.argwhere((table_va < 0) | (table_va >= n_routed_experts))
    if len(wrong):
        token, choice = wrong[0]
        raise ValueError(
            f"{name} in {files.where(name)} sends token {token} to expert {table_va[token, choice]}, and "
            f"{len(wrong)} of its entries are outside of the n_routed_experts={n_routed_experts}; take "
            "another copy of it"
        )
