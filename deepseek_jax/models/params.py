"""Parameters of a network: random ones, their shapes, their number.

Tests: tests/checkpoint/test_v4_names.py, tests/models/test_param_counts.py,
tests/models/test_decoder.py.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from deepseek_jax.models import decoder
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4 import decoder as v4
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.shard import init_sharded
from deepseek_jax.trees import PyTree

# Names of parameters for is_float32
FLOAT32 = ("router_bias", "expert_table", "sink_bias", "position_bias")


def init_params(config: Network, rng: jax.Array) -> PyTree:
    """Create random float32 parameters: normal(initializer_range) weights, unit norms, zero biases.

    Returns:
        Linen's boxed tree: flax.linen.unbox gives the arrays, parallel.shard reads the axis names.
    """
    if isinstance(config, V4Config):
        return v4.init_params(config, rng)
    return decoder.init_params(config, rng)


@functools.cache
def abstract_init(config: Network) -> Any:
    """Return the shapes of init_params' result, in Linen's boxes.

    The result is cached: tracing the whole model takes seconds, and many callers need it.
    """
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def count_params(config: Network) -> int:
    """Return the number of a model's parameters, from their shapes."""
    shapes = abstract_init(config)
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))


def random_params(config: Network, mesh: Mesh | None = None, seed: int = 0) -> PyTree:
    """Create a model's random parameters, each in its shards on the mesh, see init_params.

    Args:
        config: The model.
        mesh: Default: a mesh of one local device.
        seed: The seed of the parameters.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    return init_sharded(mesh, lambda rng: init_params(config, rng), jax.random.key(seed))


def is_float32(path: str) -> bool:
    """Return whether a parameter is float32 in every checkpoint, and whenever others are rounded.

    These are what chooses experts and, in DeepSeek-V4, the mixing of streams, the sinks and the
    compressors' position biases.

    Args:
        path: Its keys in a tree of params, as in "moe_layers/ffn/router_bias".
    """
    *_, part, name = ("", *path.split("/"))
    return name in FLOAT32 or part.endswith(("_mixing", "stream_end"))
