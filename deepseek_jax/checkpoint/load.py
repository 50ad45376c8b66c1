"""Parameters from whichever kind of checkpoint is at a path."""

from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax.checkpoint.gguf import gguf_config, load_gguf
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax
from deepseek_jax.files import as_path


def load_params(path: str | Path, dtype: str | None = None, mesh: Mesh | None = None):
    """load_orbax, load_gguf or load_hf of the path: -> (ModelConfig, params)."""
    if is_orbax(path):
        return load_orbax(path, dtype, mesh)
    load = load_gguf if as_path(path).suffix == ".gguf" else load_hf
    return load(path, dtype, mesh)


def read_any_config(path: str | Path):
    """The ModelConfig of what load_params reads at a path, whose parameters need not be there."""
    return gguf_config(path) if as_path(path).suffix == ".gguf" else read_config(path)
