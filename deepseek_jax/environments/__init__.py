"""The user's tools and environments: worker processes without jax answer the model's turns."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ActionResult": "worker",
        "Environments": "pool",
    },
)
