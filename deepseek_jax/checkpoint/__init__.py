"""The same arrays on disk: Hugging Face folders, GGUF files, Orbax."""

from deepseek_jax.checkpoint.hf_export import hf_tensors, save_hf
from deepseek_jax.checkpoint.hf_import import load_hf

__all__ = ["hf_tensors", "load_hf", "save_hf"]
