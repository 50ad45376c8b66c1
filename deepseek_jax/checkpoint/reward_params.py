"""A reward model on disk: decoder or adapter, head, and the layout of the text that it reads."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.adapter import load_adapter, save_adapter
from deepseek_jax.checkpoint.arrays import StoredArrays, save_arrays
from deepseek_jax.checkpoint.folder import check_new, whole_folder, write_files
from deepseek_jax.checkpoint.load import load_params
from deepseek_jax.checkpoint.locate import lasting_name
from deepseek_jax.checkpoint.orbax_params import load_orbax, save_orbax
from deepseek_jax.files import absolute, read_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network_config import require_model_config
from deepseek_jax.models.quantized import is_quantized, quantized
from deepseek_jax.models.reward import decoder_params, init_reward_head, reward_config
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.parallel.shard import logical_names, shardings
from deepseek_jax.trees import PyTree

ABOUT = "reward_model.json"


def save_reward_model(
    folder: str | Path,
    config: ModelConfig,
    params: PyTree,
    about: dict,
    base: str | Path | None = None,
    files: dict[str, bytes] | None = None,
):
    """Write a reward model: its decoder, its head and reward_model.json.

    They are folder/decoder (or folder/adapter for a decoder with an adapter), folder/head and
    folder/reward_model.json. If writing fails, nothing stays there.

    Args:
        folder: Absent or empty.
        config: From models.reward.reward_config.
        params: From models.reward.reward_params.
        about: A dict of anything that JSON can hold. load_reward_model returns it.
        base: The base of the adapter, see save_adapter; None for a decoder without an adapter.
        files: {name: content} of further files for the folder, see data.carried.carried_files.

    Raises:
        ValueError: The folder is not empty.
    """
    check_new(folder)
    with whole_folder(folder) as partial:
        if base is None:
            save_orbax(partial / "decoder", config, params["decoder"])
        else:
            save_adapter(partial / "adapter", config, params["decoder"], base)
            kind = "int8" if is_quantized(params["decoder"]) else None
            about = about | {"base": lasting_name(base), "quantize": kind}
        save_arrays(partial / "head", params["head"])
        if first_process():
            (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
            write_files(partial, files)


def load_reward_model(
    folder: str | Path, mesh: Mesh, dtype: str = "float32"
) -> tuple[ModelConfig, Any, dict]:
    """Read the reward model that save_reward_model wrote, placed on the mesh.

    Args:
        folder: The folder that save_reward_model wrote.
        mesh: The mesh for the parameters.
        dtype: The decoder's dtype. The head has the dtype that was saved.

    Returns:
        (ModelConfig, params, about).

    Raises:
        ValueError: The folder has no reward model.
        DamagedCheckpoint: An array is not what was saved.
    """
    path = absolute(folder)
    if not (path / ABOUT).is_file():
        raise ValueError(f"no reward model in {path}: there is no {ABOUT}")
    about = read_json(path / ABOUT)
    config, decoder = _decoder(path, about, mesh, dtype)
    boxed = jax.eval_shape(lambda rng: init_reward_head(config, rng), jax.random.key(0))
    shapes = nn.unbox(boxed)
    wanted = jax.tree.map(
        lambda leaf, place: leaf.update(sharding=place),
        shapes,
        shardings(mesh, logical_names(boxed), shapes),
    )
    params = {"decoder": decoder, "head": StoredArrays(path / "head").load(wanted)}
    return config, params, about


def _decoder(folder, about, mesh, dtype):
    """Read (ModelConfig, params) of the decoder; about["base"] names the base of an adapter."""
    if about.get("base") is None:
        return load_orbax(folder / "decoder", dtype=dtype, mesh=mesh)
    config, params = load_params(about["base"], dtype=dtype, mesh=mesh)
    config = reward_config(require_model_config(config, "a reward model"))
    params = decoder_params(params)
    if about["quantize"] is not None:
        params = quantized(params)
    return config, load_adapter(folder / "adapter", config, params, mesh)
