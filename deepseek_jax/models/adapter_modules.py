"""The modules that may have an adapter: Hugging Face's names, and our parameters for each."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.errors import suggest
from deepseek_jax.models.adapter_settings import ALL_LINEAR
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import INPUTS
from deepseek_jax.models.params import abstract_init
from deepseek_jax.parallel.shard import logical_names, shardings


@dataclasses.dataclass(frozen=True)
class Module:
    """The parameters of a layer that one of Hugging Face's modules stands for.

    Attributes:
        paths: Paths of our parameters. Two paths share lora_a and split the last axis of lora_b.
        half: 0 or 1 if the module is this half of a gated MLP's first weight, else None.
    """

    paths: tuple[str, ...]
    half: int | None = None


ATTENTION = {
    "self_attn.q_proj": Module(("attention/q",)),
    "self_attn.k_proj": Module(("attention/k",)),
    "self_attn.v_proj": Module(("attention/v",)),
    "self_attn.q_a_proj": Module(("attention/q_down",)),
    "self_attn.q_b_proj": Module(("attention/q_up",)),
    "self_attn.kv_a_proj_with_mqa": Module(("attention/kv_down",)),
    "self_attn.kv_b_proj": Module(("attention/k_up", "attention/v_up")),
    "self_attn.o_proj": Module(("attention/out",)),
}
MLP = {
    "mlp.gate_proj": Module(("ffn/gate_up",), half=0),
    "mlp.up_proj": Module(("ffn/gate_up",), half=1),
    "mlp.down_proj": Module(("ffn/down",)),
}
# Parameters of Hugging Face's module "mlp.experts", which has the weights of all routed experts
EXPERTS = {
    "mlp.experts.gate_up_proj": Module(("ffn/gate_up",)),
    "mlp.experts.down_proj": Module(("ffn/down",)),
}
MODULES = ATTENTION | MLP | EXPERTS


def modules(config: ModelConfig, stack: str):
    """Return the modules that may have an adapter in a stack of layers, {name: Module}.

    In a model with routed experts, dense layers and shared experts may have no adapter: peft has no
    name for them, because there it takes "gate_proj" to mean routed experts.

    Args:
        config: The model.
        stack: "dense_layers" or "moe_layers".
    """
    if stack == "moe_layers":
        return ATTENTION | EXPERTS
    return ATTENTION if config.num_moe_layers else ATTENTION | MLP


class Axes(NamedTuple):
    """The axes of a module's weight, {logical axis: size} each.

    Attributes:
        lead: The axes of layers and of experts.
        inputs: The axes that the product contracts.
        outputs: The axes of its result.
    """

    lead: dict[str, int]
    inputs: dict[str, int]
    outputs: dict[str, int]


def adapter_axes(config: ModelConfig, targets: tuple[str, ...]):
    """Find the modules that an adapter's targets name.

    Args:
        config: The model.
        targets: See AdapterSettings.

    Returns:
        {(stack, module): Axes}.

    Raises:
        ValueError: For no targets, and for a target that the model does not have.
    """
    axes_by_module = module_axes(config)
    if not targets:
        raise ValueError(f"targets=[] trains nothing; name a module, or {ALL_LINEAR!r}")
    for target in targets:
        if not any(_matches(module, target) for _, module in axes_by_module):
            known = sorted({_short(module) for _, module in axes_by_module})
            raise ValueError(
                f"targets={list(targets)!r}: {target!r} is not a module of this model; "
                f"{suggest(target, [*known, ALL_LINEAR])}"
            )
    return {
        key: axes
        for key, axes in axes_by_module.items()
        if any(_matches(key[1], target) for target in targets)
    }


def adapter_places(config: ModelConfig, adapter, mesh: Mesh):
    """Return the shardings of an adapter's arrays.

    Args:
        config: The model.
        adapter: {stack: {module: {"lora_a", "lora_b"}}} of arrays.
        mesh: The mesh that the arrays go to.

    Raises:
        ValueError: For a module that the model does not have.
    """
    axes_by_module, names = module_axes(config), {}
    for stack, pairs in adapter.items():
        for module in pairs:
            if (stack, module) not in axes_by_module:
                raise ValueError(f"{module} is not a module of this model")
            axes_by_matrix = matrix_axes(axes_by_module[stack, module], rank=0)
            names[stack, module] = {
                matrix: tuple(name for name, _ in axes) for matrix, axes in axes_by_matrix.items()
            }
    return shardings(mesh, unflatten_dict(names), adapter)


def matrix_axes(axes: Axes, rank: int):
    """Return the axes of a module's matrices: {"lora_a", "lora_b"}, lists of (logical axis, size).

    The name is None for the rank and for latents, which stay whole.
    """
    lead, inputs, outputs = (list(part.items()) for part in axes)
    axes_by_matrix = {
        "lora_a": [*lead, *inputs, (None, rank)],
        "lora_b": [*lead, (None, rank), *outputs],
    }
    latent_axes = ("q_lora", "kv_lora")
    return {
        matrix: [(None if name in latent_axes else name, size) for name, size in pairs]
        for matrix, pairs in axes_by_matrix.items()
    }


def module_axes(config: ModelConfig) -> dict[tuple[str, str], Axes]:
    """Return {(stack, module): Axes} for every module of the model that may have an adapter."""
    boxed = abstract_init(config)
    names = flatten_dict(logical_names(boxed), sep="/")
    shapes = flatten_dict(nn.unbox(boxed), sep="/")
    axes_by_module = {}
    for stack in ("dense_layers", "moe_layers"):
        for name, module in modules(config, stack).items():
            paths = [f"{stack}/{path}" for path in module.paths]
            if paths[0] in shapes:
                weights = [zip(names[p], shapes[p].shape, strict=True) for p in paths]
                axes_by_module[stack, name] = _axes(
                    name, module, [list(weight) for weight in weights]
                )
    return axes_by_module


def _axes(name, module: Module, weights):
    """Return the Axes of a module.

    Args:
        name: Hugging Face's name.
        module: The Module of that name.
        weights: For each of its parameters, the (name, size) of each axis.
    """
    num_lead = 2 if name in EXPERTS else 1
    first_output = num_lead + INPUTS[module.paths[0].rpartition("/")[2]]
    outputs = dict(weights[0][first_output:])
    if module.half is not None:
        del outputs["gate_up"]
    # The parameters share their inputs and all outputs but the last
    last_name = weights[0][-1][0]
    outputs[last_name] = sum(weight[-1][1] for weight in weights)
    return Axes(dict(weights[0][:num_lead]), dict(weights[0][num_lead:first_output]), outputs)


def _short(module):
    """Return a module's name as users write it."""
    return module.removeprefix("mlp.") if module in EXPERTS else module.rpartition(".")[2]


def _matches(module, target):
    if target == ALL_LINEAR:
        return module not in EXPERTS
    return _short(module) == target
