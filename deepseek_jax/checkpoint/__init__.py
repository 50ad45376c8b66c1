"""The same arrays on disk: Hugging Face folders, GGUF files, Orbax."""

from deepseek_jax.checkpoint.gguf import load_gguf
from deepseek_jax.checkpoint.hf_export import hf_tensors, save_hf
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax, save_orbax

__all__ = ["hf_tensors", "is_orbax", "load_gguf", "load_hf", "load_orbax", "save_hf", "save_orbax"]
