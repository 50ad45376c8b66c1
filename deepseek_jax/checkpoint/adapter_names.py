"""Tensor names of adapters in peft's format, and conversion of the tensors to our arrays and back.

models.adapters.AdaptedParams describes these arrays.

Tests: tests/checkpoint/test_adapter.py.
"""

import re

import numpy as np

from deepseek_jax.checkpoint.hf_names import layer_table, letter_sizes
from deepseek_jax.checkpoint.turn import parse
from deepseek_jax.models.adapter_modules import EXPERTS
from deepseek_jax.models.config import ModelConfig

# model.layers of the causal language model that peft wraps
PREFIX = "base_model.model.model.layers."
GATE_UP, DOWN = EXPERTS


def stem(module: str, modules):
    """Return a module's name inside the names of its tensors.

    Args:
        module: The name in models.adapter_modules.
        modules: All modules of the layer that have adapters.
    """
    if module not in EXPERTS:
        return module
    # peft wraps mlp.experts once for each of its two parameters; down_proj has the outer wrapper
    is_inside = module == GATE_UP and DOWN in modules
    return "mlp.experts.base_layer" if is_inside else "mlp.experts"


def module_of(config: ModelConfig, name: str, tensors):
    """Return the module that a stem belongs to: the inverse of stem.

    The stem "mlp.experts" is ambiguous unless both modules of the routed experts have adapters. The
    shapes of its tensors then decide.

    Args:
        name: A stem.
        tensors: {stem: {(layer, "lora_a" or "lora_b"): tensor}} of the whole adapter.
    """
    if name == "mlp.experts.base_layer":
        return GATE_UP
    if name != "mlp.experts":
        return name
    if "mlp.experts.base_layer" in tensors:
        return DOWN
    shapes = {part: tensor.shape for (_, part), tensor in tensors[name].items()}
    inputs, outputs = shapes.get("lora_a", (0, 0))[1], shapes.get("lora_b", (0, 0))[0]
    is_down = (inputs, outputs) == (config.moe_intermediate_size, config.hidden_size)
    return DOWN if is_down else GATE_UP


def tensor_names(layer: int, name: str):
    """Return the names of a module's tensors lora_A and lora_B in one layer.

    Args:
        name: From stem.
    """
    return [f"{PREFIX}{layer}.{name}.{part}.weight" for part in ("lora_A", "lora_B")]


def parse_name(name: str):
    """Split an adapter tensor's name into its parts.

    Returns:
        (layer, stem, "lora_a" or "lora_b"), or None for any other name.
    """
    match = re.fullmatch(re.escape(PREFIX) + r"(\d+)\.(.+)\.lora_([AB])\.weight", name)
    return match and (int(match[1]), match[2], f"lora_{match[3].lower()}")


def to_tensors(config: ModelConfig, module: str, a, b):
    """Convert the two arrays of a module in one layer to peft's two tensors.

    Returns:
        lora_A [rank inputs] and lora_B [outputs rank]. For routed experts they are [experts x rank,
        inputs] and [outputs, rank x experts].
    """
    a, b = np.asarray(a), np.asarray(b)
    if module in EXPERTS:
        e, r = b.shape[:2]
        rows = np.moveaxis(a, -1, 1).reshape(e * r, -1)
        return rows, np.ascontiguousarray(b.reshape(e, r, -1).transpose(2, 1, 0).reshape(-1, r * e))
    turn_a, turn_b = _turns(config, module, a.shape[-1])
    return tuple(
        np.ascontiguousarray(turn.to_view(x).reshape(turn.shape))
        for turn, x in ((turn_a, a), (turn_b, b))
    )


def to_arrays(config: ModelConfig, module: str, rank: int, a, b):
    """Convert peft's two tensors of a module to our arrays: the inverse of to_tensors.

    Raises:
        ValueError: A tensor does not have the shape that the model needs, which the message says.
    """
    if module in EXPERTS:
        e, _, f = config.experts
        d = config.hidden_size
        inputs, outputs = (d, (2, f)) if module == GATE_UP else (f, (d,))
        _check("lora_A", a, (e * rank, inputs))
        _check("lora_B", b, (np.prod(outputs), rank * e))
        rows = np.moveaxis(a.reshape(e, rank, inputs), 1, -1)
        return rows, b.reshape(-1, rank, e).transpose(2, 1, 0).reshape(e, rank, *outputs)
    turn_a, turn_b = _turns(config, module, rank)
    _check("lora_A", a, turn_a.shape)
    _check("lora_B", b, turn_b.shape)
    return turn_a.to_parameter(a), turn_b.to_parameter(b)


def rank_of(config: ModelConfig, module: str, a):
    """Return the rank of a module, from its tensor lora_A."""
    return len(a) // config.experts.n_routed_experts if module in EXPERTS else len(a)


def _check(tensor_name, tensor, shape):
    if tensor.shape != tuple(shape):
        raise ValueError(
            f"{tensor_name} is {list(tensor.shape)}, and this model needs {list(shape)}"
        )


def _turns(config, module, rank):
    """Derive the Turns of lora_A and lora_B from the spec of the weight that they change."""
    specs = {name: spec for name, _, spec in layer_table(config, False)}
    if (spec := specs.get(f"{module}.weight")) is None:
        raise ValueError(f"{module} is not a module of a {config.model_type} model of this config")
    outputs, inputs = re.findall(r"\(.*?\)|\S+", spec.split(" -> ")[0])
    # w: the rank, by a letter that no spec uses
    axis_sizes = letter_sizes(config, False) | {"w": rank}
    axes_in, axes_out = (re.sub(r"[()~]", "", group) for group in (inputs, outputs))
    return parse(f"w {inputs} -> {axes_in} w", axis_sizes), parse(
        f"{outputs} w -> w {axes_out}", axis_sizes
    )
