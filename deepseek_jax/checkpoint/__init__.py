"""Parameters on disk: load and save Hugging Face folders, Orbax folders, GGUF files, adapters."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "hf_tensors": "hf_export",
        "is_adapter": "adapter",
        "is_orbax": "orbax_params",
        "load_adapter": "adapter",
        "load_gguf": "gguf",
        "load_hf": "hf_import",
        "load_orbax": "orbax_params",
        "load_params": "load",
        "load_v4": "v4_import",
        "save_adapter": "adapter",
        "save_hf": "hf_export",
        "save_orbax": "orbax_params",
        "save_v4": "v4_export",
    },
)
