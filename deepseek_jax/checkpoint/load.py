"""Parameters from whichever kind of checkpoint is at a path."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.orbax_params import is_orbax
from deepseek_jax.lazy import LazyTable
from deepseek_jax.models import ModelConfig
from deepseek_jax.progress import waiting_for

# What reads the parameters and what the config of each format; only the one at hand is imported
LOADERS = LazyTable(
    {
        "orbax": "deepseek_jax.checkpoint.orbax_params:load_orbax",
        "gguf": "deepseek_jax.checkpoint.gguf:load_gguf",
        "hf": "deepseek_jax.checkpoint.hf_import:load_hf",
    }
)
CONFIGS = LazyTable(
    {
        "orbax": "deepseek_jax.checkpoint.hf_config:read_config",
        "gguf": "deepseek_jax.checkpoint.gguf:gguf_config",
        "hf": "deepseek_jax.checkpoint.hf_config:read_config",
    }
)


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
