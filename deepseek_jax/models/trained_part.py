"""A model's params when an update trains only one part of them, such as the indexers."""

import dataclasses
import functools

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import INDEXER
from deepseek_jax.models.params import init_params
from deepseek_jax.parallel.shard import init_sharded


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["trained", "frozen"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """A model's params in two trees; it can stand wherever params can stand.

    Attributes:
        trained: The parameters that an update changes.
        frozen: All other parameters.
    """

    trained: dict
    frozen: dict


def indexers_of(params):
    """Return params as a TrainedPart that trains the indexers and freezes the rest."""
    flat = flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if INDEXER in path}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return TrainedPart(unflatten_dict(trained), unflatten_dict(frozen))


def rejoined(part: TrainedPart):
    """Return the model's whole tree of parameters: the inverse of indexers_of."""
    return unflatten_dict(flatten_dict(part.frozen) | flatten_dict(part.trained))


def with_indexers(config: ModelConfig, params, mesh: Mesh, seed: int):
    """Add randomly initialised indexers to a dense model's parameters.

    Args:
        config: The model with indexers (deepseek_v32), which the result fits.
        params: The parameters of the same model without indexers.
        mesh: The new indexers are created in their shards on this mesh.
        seed: The seed of the new indexers.
    """

    def init(rng):
        # jit computes only what is returned: the rest of the model is never created
        return indexers_of(init_params(config, rng)).trained

    indexers = init_sharded(mesh, init, jax.random.key(seed))
    return rejoined(TrainedPart(indexers, params))
