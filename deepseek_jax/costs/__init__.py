"""Costs of a model: the FLOPs to train it, and the bytes and chips to serve it."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CHIPS": "chips",
        "cache_bytes": "deployment",
        "chips_for": "deployment",
        "step_bytes": "deployment",
        "tokens_per_second": "deployment",
        "useful_flops": "flops",
        "weight_bytes": "deployment",
    },
)
