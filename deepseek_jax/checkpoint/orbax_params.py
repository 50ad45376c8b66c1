"""Parameters in an Orbax folder with Hugging Face's config.json: fast, sharded, for any mesh."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint.arrays import StoredArrays, save_arrays
from deepseek_jax.checkpoint.folder import check_new, is_unfinished, whole_folder, write_files
from deepseek_jax.checkpoint.network_config import network_json, read_network
from deepseek_jax.checkpoint.tree import abstract_params, checked_by_path, compute_dtype, from_paths
from deepseek_jax.files import absolute
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import is_float32
from deepseek_jax.notebooks import plainly
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.trees import PyTree


def is_orbax(folder: str | Path) -> bool:
    """Return whether save_orbax wrote this folder."""
    return not is_unfinished(folder) and ocp.is_orbax_checkpoint(absolute(folder) / "params")


def save_orbax(
    folder: str | Path, config: Network, params: PyTree, files: dict[str, bytes] | None = None
) -> None:
    """Write a model as an Orbax folder: folder/config.json and folder/params.

    The processes of a run call it together. If writing fails, nothing stays there.

    Args:
        folder: Absent or empty.
        params: The tree of models.init_params, unboxed.
        files: {name: content} of further files for the folder, see data.carried.carried_files.

    Raises:
        ValueError: The folder is not empty, or params do not fit config.
    """
    check_new(folder)
    flat = checked_by_path(config, params)
    text = network_json(config, dtype=flat["embedding"].dtype)
    with whole_folder(folder) as partial:
        save_arrays(partial / "params", params)
        if first_process():
            (partial / "config.json").write_text(json.dumps(text, indent=2) + "\n")
            write_files(partial, files)


@plainly()
def load_orbax(
    folder: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[Network, Any]:
    """Read the config and the parameters that save_orbax wrote.

    The processes of a run call it together. Each reads the chunks of the files that have numbers
    for its devices: about its share.

    Args:
        dtype: As in load_hf, but the parameters of models.params.is_float32 keep the dtype that
            was saved.
        mesh: As in load_hf.

    Returns:
        (Network, params).

    Raises:
        DamagedCheckpoint: As arrays.StoredArrays does.
    """
    config, stored = read_network(folder), StoredArrays(absolute(folder) / "params")
    saved = checked_by_path(config, stored.tree)
    # What is never rounded keeps the dtype that was saved
    dtypes = {
        name: jnp.dtype(leaf.dtype if dtype is None or is_float32(name) else dtype)
        for name, leaf in saved.items()
    }
    place = None if mesh else jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        name: leaf.update(sharding=place) if place else leaf
        for name, leaf in abstract_params(config, dtypes, mesh).items()
    }
    params = stored.load(from_paths(wanted))
    return dataclasses.replace(config, dtype=compute_dtype(params)), params
