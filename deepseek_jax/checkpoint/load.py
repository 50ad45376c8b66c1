"""Parameters from whichever kind of checkpoint is at a path."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint.gguf import gguf_config, load_gguf
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax
from deepseek_jax.models import ModelConfig
from deepseek_jax.progress import waiting_for

# What reads the parameters and what the config of each format
LOADERS = {"orbax": load_orbax, "gguf": load_gguf, "hf": load_hf}
CONFIGS = {"orbax": read_config, "gguf": gguf_config, "hf": read_config}


def load_params(
    path: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Any]:
    """load_orbax, load_gguf or load_hf of checkpoint_path: -> (ModelConfig, params)."""
    path = checkpoint_path(path)
    with waiting_for(f"loading {path}"):
        return LOADERS[_format(path)](path, dtype, mesh)


def read_any_config(path: str | Path):
    """The ModelConfig of what load_params reads at a path, whose parameters need not be there."""
    path = checkpoint_path(path, weights=False)
    return CONFIGS[_format(path)](path)


def _format(path):
    if is_orbax(path):
        return "orbax"
    return "gguf" if path.suffix == ".gguf" else "hf"
