"""Parameters from whichever kind of checkpoint is at a path."""

from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax.checkpoint.gguf import load_gguf
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax
from deepseek_jax.files import as_path


def load_params(path: str | Path, dtype: str | None = None, mesh: Mesh | None = None):
    """load_orbax, load_gguf or load_hf of the path: -> (ModelConfig, params)."""
    if is_orbax(path):
        return load_orbax(path, dtype, mesh)
    load = load_gguf if as_path(path).suffix == ".gguf" else load_hf
    return load(path, dtype, mesh)
