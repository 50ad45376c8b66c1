"""LoRA (arXiv:2106.09685): add an adapter to a model, merge it, and split params for an update.

An adapter is another parameterisation of the same model: thin matrices learn, and the model's own
parameters are frozen. Nothing else in the model has code for adapters: modules read every parameter
through layers.weight, which merges it with its adapter.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from deepseek_jax.models.adapter_modules import MODULES, adapter_axes, matrix_axes
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.low_rank import LowRank, dense, is_weight
from deepseek_jax.models.quantized import abstract_quantized
from deepseek_jax.models.trained_part import TrainedPart, rejoined
from deepseek_jax.parallel.shard import init_sharded, logical_names, shardings

UNIFORM = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["base", "adapter"], meta_fields=["scale"]
)
@dataclasses.dataclass(frozen=True)
class AdaptedParams:
    """A model's params with an adapter; it can stand wherever a model's params can stand.

    Attributes:
        base: The frozen params.
        adapter: {stack: {module: {"lora_a", "lora_b"}}}, arrays with a leading axis of layers.
        scale: alpha / rank.
    """

    base: dict
    adapter: dict
    scale: float


# The field that an update changes, for each kind of params with a frozen part
LEARNS = {AdaptedParams: "adapter", TrainedPart: "trained"}


def with_adapter(config: ModelConfig, params, settings: AdapterSettings, mesh: Mesh, seed: int):
    """Add a new adapter to params; it does not yet change what the model computes.

    Args:
        config: The model.
        params: The model's params, which are donated.
        settings: The adapter's settings.
        mesh: The adapter's arrays are created in their shards on this mesh.
        seed: The seed of the adapter's random matrices.

    Returns:
        An AdaptedParams.

    Raises:
        ValueError: For a target that the model does not have.
    """
    init = functools.partial(init_adapter, config, settings)
    adapter = init_sharded(mesh, init, jax.random.key(seed))

    def put(path, leaf):
        read_format = as_read(path, leaf)
        # Donate the leaf, so that there is no second copy of the weights
        return (
            leaf if read_format == leaf.format else jax.device_put(leaf, read_format, donate=True)
        )

    base = jax.tree.map_with_path(put, params)
    return AdaptedParams(base, adapter, settings.alpha / settings.rank)


def abstract_adapted(config: ModelConfig, params, settings: AdapterSettings, mesh: Mesh):
    """Return a run's AdaptedParams as ShapeDtypeStructs.

    Its base is in int8 if settings.quantize says so.
    """
    boxed = jax.eval_shape(lambda: init_adapter(config, settings, jax.random.key(0)))
    shapes = nn.unbox(boxed)
    sharding_tree = shardings(mesh, logical_names(boxed), shapes)
    adapter = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), shapes, sharding_tree
    )
    base = params if settings.quantize is None else abstract_quantized(params)
    base = jax.tree.map_with_path(lambda p, leaf: leaf.update(sharding=as_read(p, leaf)), base)
    return AdaptedParams(base, adapter, settings.alpha / settings.rank)


def as_read(path, leaf):
    """Return the Format (sharding, and order of axes in memory) that stores a frozen parameter.

    On a TPU the halves of a gated MLP's first weight [l d 2 f] are stored one after the other, as
    their product reads them. In the default order the compiler would move all of these weights
    before every update: a copy of most of the model.

    Args:
        path: The parameter's keys in a tree of params.
        leaf: The parameter, or its ShapeDtypeStruct.
    """
    has_halves = getattr(path[-1], "key", None) == "gate_up" and leaf.ndim == 4
    on_tpu = next(iter(leaf.sharding.device_set)).platform == "tpu"
    return Format(Layout((0, 2, 1, 3)), leaf.sharding) if has_halves and on_tpu else leaf.format


def init_adapter(config: ModelConfig, settings: AdapterSettings, rng):
    """Create a new adapter's float32 arrays in Linen's boxes, which name their axes.

    Matrix a is uniform within 1 / sqrt(inputs), as in peft, and b is zero.
    """
    r, adapter = settings.rank, {}
    modules = sorted(adapter_axes(config, settings.targets).items())
    for key, (module, axes) in zip(jax.random.split(rng, len(modules)), modules, strict=True):
        matrices = matrix_axes(axes, r)
        (a_names, a_shape), (b_names, b_shape) = (
            zip(*pairs, strict=True) for pairs in matrices.values()
        )
        a = UNIFORM(key, a_shape) * math.prod(axes.inputs.values()) ** -0.5
        adapter[module] = {
            "lora_a": nn.LogicallyPartitioned(a, a_names),
            "lora_b": nn.LogicallyPartitioned(jnp.zeros(b_shape), b_names),
        }
    return unflatten_dict(adapter)


def whole(params):
    """Return the model's tree of parameters, also for an AdaptedParams or a TrainedPart.

    The tree of an AdaptedParams has a low_rank.LowRank for every weight with an adapter.
    """
    if isinstance(params, TrainedPart):
        return rejoined(params)
    if not isinstance(params, AdaptedParams):
        return params
    weights = flatten_dict(params.base, sep="/")
    factors_by_path: dict[str, list[tuple[jax.Array, jax.Array] | None]] = {}
    for stack, pair_by_module in params.adapter.items():
        for name, pair in pair_by_module.items():
            module = MODULES[name]
            paths = [f"{stack}/{path}" for path in module.paths]
            for path, factors in zip(paths, _shares(pair, paths, weights), strict=True):
                halves = factors_by_path.setdefault(
                    path, [None] if module.half is None else [None, None]
                )
                halves[module.half or 0] = factors
    for path, factors in factors_by_path.items():
        is_of_experts = path.startswith("moe_layers/ffn/")
        weights[path] = LowRank(weights[path], tuple(factors), params.scale, is_of_experts)
    return unflatten_dict(weights, sep="/")


def _shares(pair, paths, weights):
    """Return the (a, b) of each weight that a module's pair of matrices changes."""
    a, b = pair["lora_a"], pair["lora_b"]
    if len(paths) == 1:
        return [(a, b)]
    width = weights[paths[0]].shape[-1]
    return [(a, b[..., :width]), (a, b[..., width:])]


def merged(params: AdaptedParams):
    """Merge an adapter into the weights: params that compute the same without an adapter.

    Returns:
        A tree of dense weights in the dtypes of the base.
    """

    def merge(leaf, base):
        if not is_weight(leaf):
            return leaf
        # One layer at a time: until the cast, a merged weight is float32
        return jax.lax.map(lambda layer: dense(layer).astype(base.dtype), leaf)

    return jax.tree.map(merge, whole(params), params.base, is_leaf=is_weight)


def split(params):
    """Split params into the arrays that an update changes and the rest, for `join`.

    Args:
        params: A tree of params; AdaptedParams and TrainedPart may stand in it.

    Returns:
        (trained, frozen). trained is the tree with the adapter of each AdaptedParams and the trained part
        of each TrainedPart. frozen is what join needs in addition; it is None if the tree has no
        AdaptedParams and no TrainedPart, and then all of it is trained.
    """
    if not any(map(_learns_in_part, jax.tree.leaves(params, is_leaf=_learns_in_part))):
        return params, None

    def trained_part(node):
        return getattr(node, LEARNS[type(node)]) if _learns_in_part(node) else node

    def frozen_part(node):
        return _with_own(node, None) if _learns_in_part(node) else None

    return tuple(
        jax.tree.map(part, params, is_leaf=_learns_in_part) for part in (trained_part, frozen_part)
    )


def join(trained, frozen):
    """Put the two results of `split` together again."""
    if frozen is None:
        return trained

    def put(node, trained_part):
        return trained_part if node is None else _with_own(node, trained_part)

    return jax.tree.map(
        put, frozen, trained, is_leaf=lambda node: node is None or _learns_in_part(node)
    )


def _learns_in_part(node):
    return type(node) in LEARNS


def _with_own(node, trained_part):
    return dataclasses.replace(node, **{LEARNS[type(node)]: trained_part})
