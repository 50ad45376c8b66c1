"""The same arrays on disk: Hugging Face folders, GGUF files, Orbax."""

from deepseek_jax.checkpoint.adapter import is_adapter, load_adapter, save_adapter
from deepseek_jax.checkpoint.gguf import load_gguf
from deepseek_jax.checkpoint.hf_export import hf_tensors, save_hf
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.load import load_params
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax, save_orbax

__all__ = [
    "hf_tensors",
    "is_adapter",
    "is_orbax",
    "load_adapter",
    "load_gguf",
    "load_hf",
    "load_orbax",
    "load_params",
    "save_adapter",
    "save_hf",
    "save_orbax",
]
