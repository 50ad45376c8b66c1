"""A reward model on disk: its decoder as save_orbax writes it, its head, and the layout of its text."""

import json
from pathlib import Path

import flax.linen as nn
import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint.folder import check_new, whole_folder
from deepseek_jax.checkpoint.orbax_params import load_orbax, save_orbax
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.reward import init_reward_head
from deepseek_jax.parallel import logical_names, shardings
from deepseek_jax.parallel.processes import first_process

ABOUT = "reward_model.json"


def save_reward_model(folder: str | Path, config: ModelConfig, params, about):
    """Write folder/decoder, folder/head and folder/reward_model.json.

    config, params: of models.reward.reward_config and reward_params. about: anything that JSON can hold;
    load_reward_model returns it. Raises ValueError for a folder that is not empty. A failure leaves nothing
    behind.
    """
    check_new(folder)
    with whole_folder(folder) as partial:
        save_orbax(partial / "decoder", config, params["decoder"])
        ocp.save(partial / "head", params["head"])
        if first_process():
            (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def load_reward_model(folder: str | Path, mesh: Mesh):
    """Read what save_reward_model wrote: -> (ModelConfig, float32 params on the mesh, about).

    Raises ValueError for a folder without a reward model.
    """
    folder = Path(folder).absolute()
    if not (folder / ABOUT).is_file():
        raise ValueError(f"no reward model in {folder}: there is no {ABOUT}")
    config, decoder = load_orbax(folder / "decoder", dtype="float32", mesh=mesh)
    boxed = jax.eval_shape(lambda rng: init_reward_head(config, rng), jax.random.key(0))
    shapes = nn.unbox(boxed)
    wanted = jax.tree.map(
        lambda leaf, place: leaf.update(sharding=place),
        shapes,
        shardings(mesh, logical_names(boxed), shapes),
    )
    params = {"decoder": decoder, "head": ocp.load(folder / "head", wanted)}
    return config, params, json.loads((folder / ABOUT).read_text())
