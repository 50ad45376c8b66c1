"""An update's memory and time on a layout, from sizes alone: to rank layouts before a few are compiled.

Memory: the arguments, the gradients, what the forward pass saves, and the largest working set beside them.
Time: products at the peak, then the collectives, nothing hidden. Left out: memory traffic, the optimizer, the
gradients' sum over slices, and all that roofline.py leaves out.
"""

import dataclasses
import math

from jax.sharding import Mesh

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.flops import attended_keys, forward_flops
from deepseek_jax.costs.layouts import Layout
from deepseek_jax.costs.program import Program
from deepseek_jax.models import ModelConfig
from deepseek_jax.ops.platform import SIZES
from launch.planning.roofline import collective_seconds
from launch.planning.shards import Shards, compute_bytes


@dataclasses.dataclass(frozen=True)
class Widths:
    """Numbers of one token: of a layer's latents or keys and values, of all heads' queries, keys and values,
    of attention's output, of the hidden halves of the MLP, and of the MLP's rows.
    """

    latents: int
    heads: int
    attended: int
    gate_up: float
    rows: float


def peak_bytes(program: Program, shards: Shards, layout: Layout):
    """The most that one device holds at once, roughly. shards: of the program on the layout's mesh."""
    config, itemsize = program.model, compute_bytes(program)
    tokens = _tokens(program, layout.mesh) / layout.micro_batches
    split = layout.mesh["tensor"]
    # Gradients are float32, as the parameters; those of micro-batches are added to a sum
    gradients = shards.params * (2 if layout.micro_batches > 1 else 1)
    layers = (config.num_dense_layers, False), (config.num_moe_layers, True)
    widths = {is_moe: _widths(config, is_moe, layout.mesh) for n, is_moe in layers if n}
    saved = sum(
        n * _saved(config, widths[is_moe], layout.remat, split) for n, is_moe in layers if n
    )
    saved *= tokens * itemsize / layout.mesh["pipeline"]
    if config.selects(length := 2 * _keys(program)) and layout.remat not in ("full", "offload"):
        # A selection has a bit for each key of the row
        layers_here = config.num_hidden_layers / layout.mesh["pipeline"]
        saved += layers_here * tokens * length / 8 / split
    # In the backward pass: a layer's numbers, whose places gradients take, its weights and their gradients
    working = max(_whole(config, width, split) for width in widths.values())
    layer = working * tokens * itemsize + 2 * shards.layer
    # The head is gathered whole; its gradient is float32
    head = config.vocab_size * config.hidden_size * (itemsize + 4)
    chunk = min(SIZES["logits_alive"]["tpu"], tokens / split * config.vocab_size)
    return shards.arguments + gradients + saved + max(layer, head + 3 * 4 * chunk)


def step_seconds(program: Program, shards: Shards, layout: Layout, chip: Chip, mesh: Mesh):
    """Seconds of the update, roughly. mesh: the layout's, over devices."""
    work = program.flops + program.tokens * (
        _recomputed(program, layout.remat) + _masked(program.model, _keys(program))
    )
    seconds = work / mesh.size / chip.flops_per_second
    for axes, whole in shards.gathered.items():
        parts = math.prod(layout.mesh[axis] for axis in axes)
        # Forward, backward, and the same wire for the gradients
        wire = 3 * layout.micro_batches * whole * (parts - 1) / parts
        seconds += collective_seconds("all-gather", axes, wire, chip, mesh)
    for kind, axis, wire in _exchanged(program, layout):
        seconds += collective_seconds(kind, (axis,), wire, chip, mesh)
    return seconds


def _exchanged(program, layout):
    """(kind, axis, bytes that a device sends in an update) of activations."""
    config, sizes = program.model, layout.mesh
    # The exchanges of a recomputed layer are repeated
    passes = 3 if layout.remat in ("full", "attention") else 2
    numbers = passes * _tokens(program, sizes) * compute_bytes(program) / sizes["pipeline"]
    width = _widths(config, False, sizes)
    heads = (width.heads + width.attended) / sizes["tensor"]
    # Rows to their experts and back; heads' rows and outputs; two sums of a layer, each there and back
    one_way = {
        ("ragged-all-to-all", "expert"): 2
        * config.num_moe_layers
        * (config.num_experts_per_tok or 0)
        * config.hidden_size,
        ("all-to-all", "context"): config.num_hidden_layers * heads,
        ("all-reduce", "tensor"): 2 * 2 * config.num_hidden_layers * config.hidden_size,
    }
    for (kind, axis), wide in one_way.items():
        if sizes[axis] > 1:
            yield kind, axis, numbers * wide * (sizes[axis] - 1) / sizes[axis]


def _tokens(program, sizes):
    """Of one device, in all micro-batches."""
    split = ("slice", "data", "fsdp", "expert", "context")
    return program.tokens / math.prod(sizes[axis] for axis in split)


def _widths(config: ModelConfig, is_moe: bool, sizes: dict):
    h, d = config.num_attention_heads, config.hidden_size
    if config.is_mla:
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        latents = (config.q_lora_rank or h * key) + config.kv_lora_rank + config.qk_rope_head_dim
        heads, attended = h * (2 * key + config.v_head_dim), h * config.v_head_dim
        if config.has_indexer:
            latents += config.index_head_dim + config.index_n_heads
            heads += config.index_n_heads * config.index_head_dim
    else:
        heads = latents = (h + 2 * config.num_key_value_heads) * config.head_dim
        attended = h * config.head_dim
    if not is_moe:
        return Widths(latents, heads, attended, 2 * config.intermediate_size, d)
    a, n = config.num_experts_per_tok, sizes["expert"]
    # Without expert_buffer there is room for every token of the other devices
    worst = n * min(a, config.n_routed_experts // n) / a
    routed = a * (min(config.expert_buffer or worst, worst) if n > 1 else 1)
    gate_up = 2 * config.moe_intermediate_size * (routed + config.n_shared_experts)
    return Widths(latents, heads, attended, gate_up, d * (routed + 1))


def _saved(config: ModelConfig, width: Widths, remat: str, tensor: int):
    """Numbers of a token that a layer's forward pass saves for the backward pass."""
    d = config.hidden_size
    if remat == "full":
        return d
    if remat == "attention":
        return d + width.attended / tensor
    if remat == "selective":
        return d + width.latents + (width.attended + width.gate_up) / tensor
    if remat == "dots":
        # Grouped products are recomputed: the rows of routed tokens are not saved
        shared = width.gate_up if width.rows == d else 0
        return 3 * d + width.latents + (width.heads + shared) / tensor
    return _whole(config, width, tensor)


def _whole(config: ModelConfig, width: Widths, tensor: int):
    """Numbers of a token that a layer computes."""
    inside = width.heads + width.attended + 1.5 * width.gate_up
    return 4 * config.hidden_size + width.latents + inside / tensor + 2 * width.rows


def _keys(program: Program):
    """How many keys a token sees on average."""
    rows = max(len(x) for x in program.arguments[1].values() if x.shape)
    return program.tokens / rows / 2


def _masked(config: ModelConfig, keys: float):
    """FLOPs of a token, forward and backward, for keys that it did not select: training masks them."""
    every = forward_flops(config, keys, attended=keys)
    needed = forward_flops(config, keys, attended=attended_keys(config, round(2 * keys)))
    return 3 * (every - needed)


def _recomputed(program: Program, remat: str):
    """FLOPs of a token that the backward pass computes again."""
    config, keys = program.model, _keys(program)
    forward, products = forward_flops(config, keys, attended=keys), forward_flops(config, 0)
    if remat == "full":
        return forward
    if remat == "none":
        return 0.0
    attention = forward - products
    if remat == "attention":
        return products
    if remat == "dots":
        routed = 3 * config.hidden_size * (config.moe_intermediate_size or 0)
        routed *= config.num_moe_layers * (config.num_experts_per_tok or 0)
        return attention + 2 * routed
    # Of the latents' up-projections
    up = 0
    if config.is_mla:
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        up = (config.q_lora_rank or 0) * key
        up += config.kv_lora_rank * (config.qk_nope_head_dim + config.v_head_dim)
    return attention + 2 * config.num_hidden_layers * config.num_attention_heads * up
