"""A model's params of which one part learns, such as its indexers, while the rest stays as it is."""

import dataclasses
import functools

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import abstract_init, init_params
from deepseek_jax.models.layers import INDEXER
from deepseek_jax.parallel.shard import init_sharded


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["trained", "frozen"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """trained, frozen: two trees that share out a model's parameters. It stands wherever params may stand."""

    trained: dict
    frozen: dict


def indexers_of(params):
    """The params, of which the indexers learn alone: -> TrainedPart."""
    flat = flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if INDEXER in path}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return TrainedPart(unflatten_dict(trained), unflatten_dict(frozen))


def rejoined(part: TrainedPart):
    """The tree of the model's parameters: the inverse of indexers_of."""
    return unflatten_dict(flatten_dict(part.frozen) | flatten_dict(part.trained))


def with_indexers(config: ModelConfig, params, mesh: Mesh, seed: int):
    """The params of a dense model beside random indexers on the mesh: those of `config`, which has them."""

    def init(rng):
        # Only what is returned is computed
        return indexers_of(init_params(config, rng)).trained

    boxed = indexers_of(abstract_init(config)).trained
    indexers = init_sharded(mesh, init, jax.random.key(seed), boxed)
    return rejoined(TrainedPart(indexers, params))
