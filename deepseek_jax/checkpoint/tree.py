"""Parameter trees by path, {"moe_layers/ffn/down": leaf, ...}, and the tree that a config needs.

Tests: tests/checkpoint/test_orbax_params.py.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import abstract_adapted
from deepseek_jax.models.network_config import Network, require_model_config
from deepseek_jax.models.params import abstract_init, is_float32
from deepseek_jax.parallel.shard import logical_names, shardings
from deepseek_jax.trees import PyTree


def by_path(tree: PyTree) -> dict[str, Any]:
    """Flatten a tree of dicts to {"a/b": leaf}."""
    keystr = jax.tree_util.keystr
    return {
        keystr(key, simple=True, separator="/"): leaf
        for key, leaf in jax.tree.leaves_with_path(tree)
    }


def from_paths(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of dicts for {"a/b": leaf}: the inverse of by_path."""
    return unflatten_dict(flat, sep="/")


def abstract_params(
    config: Network, dtypes: dict | None = None, mesh: Mesh | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {path: ShapeDtypeStruct} of the config's parameters, placed on mesh by parallel.RULES.

    Args:
        dtypes: {path: dtype}; None is float32 for all.
        mesh: Without one, the sharding is None.
    """
    boxed_params = abstract_init(config)
    shapes = nn.unbox(boxed_params)
    places = by_path(shardings(mesh, logical_names(boxed_params), shapes)) if mesh else {}
    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape, dtypes[path] if dtypes else jnp.float32, sharding=places.get(path)
        )
        for path, leaf in by_path(shapes).items()
    }


def abstract_tree(
    config: Network,
    mesh: Mesh,
    dtype: str = "float32",
    adapter: AdapterSettings | None = None,
) -> PyTree:
    """Return the config's params as a tree of ShapeDtypeStructs on the mesh, as load_hf reads them.

    Args:
        mesh: The mesh of the params.
        dtype: Dtype of the params, except those of models.params.is_float32.
        adapter: The settings of a run that trains an adapter. With them the result is an Adapted,
            and the params of its base are in the config's dtype.
    """
    if adapter is not None:
        stacked = require_model_config(config, "an adapter")
        return abstract_adapted(stacked, abstract_tree(config, mesh, config.dtype), adapter, mesh)
    leaves = abstract_params(config, mesh=mesh)
    return from_paths(
        {
            path: leaf if is_float32(path) else leaf.update(dtype=jnp.dtype(dtype))
            for path, leaf in leaves.items()
        }
    )


def checked_by_path(config: Network, params: PyTree) -> dict[str, Any]:
    """Return by_path(params) if all shapes are as the config says.

    Raises:
        ValueError: A parameter is missing, extra or wrongly shaped. The message has its path.
    """
    expected_leaves, leaves = abstract_params(config), by_path(params)
    for path in sorted(expected_leaves.keys() | leaves.keys()):
        expected_shape, shape = (
            tree[path].shape if path in tree else "missing" for tree in (expected_leaves, leaves)
        )
        if expected_shape != shape:
            raise ValueError(
                f"parameter {path} is {shape} in params and {expected_shape} by their {type(config).__name__}"
            )
    return leaves


def compute_dtype(params: PyTree) -> Literal["float32", "bfloat16"]:
    """Return the dtype to compute in: "bfloat16" if the embedding has it, else "float32"."""
    return "bfloat16" if params["embedding"].dtype == jnp.bfloat16 else "float32"
