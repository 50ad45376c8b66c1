"""The parts of every layer: named weights, RMSNorm, Linear products, gated MLP, rotary tables."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig, RopeScaling
from deepseek_jax.models.low_rank import dense
from deepseek_jax.ops import rope
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.gated_mlp import gated_mlp, swiglu
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.parallel.few_tokens import Split, added_up
from deepseek_jax.parallel.linear import by_token
from deepseek_jax.parallel.rules import RULES
from deepseek_jax.parallel.shard import current_rules
from deepseek_jax.trees import PyTree

# The module of V3.2's attention that selects keys
INDEXER = "indexer"
# Parameters that no loss trains: balancing moves router_bias (arXiv:2412.19437, section 2.1.2), and the table
# of V4's first layers is fixed (arXiv:2606.19348)
UNTRAINED = ("router_bias", "expert_table")
# Parts of a model that few losses train, and how to recognise a key in the paths of their parameters
PARTS = {"mtp": lambda key: key.startswith("mtp_"), "indexer": lambda key: key == INDEXER}


def weight(module: nn.Module, name: str, *, init=None, **axes: int):
    """Declare a module's float32 parameter and name its logical axes.

    The sharding rules read the axis names from the parameter's metadata. A parameter that exists
    already is returned unchecked, because decoding prepares some in another form (ops.decoding). A
    parameter with an adapter is merged with it here, inside the layer that uses it, so that there
    is never a second copy of the model.

    Args:
        module: The nn.Module that has the parameter; it has a field `config`.
        name: The parameter's name in the module.
        init: A Flax initializer. Default: normal with the config's initializer_range.
        **axes: One keyword for each dimension, in order: logical axis = size.
    """
    if (parameter := module.get_variable("params", name)) is not None:
        return dense(nn.unbox(parameter))
    init = init or nn.initializers.normal(module.config.initializer_range)
    boxed_init = nn.with_logical_partitioning(init, tuple(axes))
    return module.param(name, boxed_init, tuple(axes.values()), jnp.float32)


def has_gradient(path: tuple, trained_parts: tuple[str, ...] = ()) -> bool:
    """Return whether a loss gives a parameter a gradient.

    False for UNTRAINED, and for PARTS that the loss does not train.

    Args:
        path: The keys of the parameter in a tree of params.
        trained_parts: The names in PARTS that the loss trains.
    """
    # All keys, not only the first: distillation trains a tree of the student's params and projections
    keys = [str(key.key) for key in path]
    untrained_parts = [
        is_of_part for part, is_of_part in PARTS.items() if part not in trained_parts
    ]
    return keys[-1] not in UNTRAINED and not any(
        is_of_part(key) for is_of_part in untrained_parts for key in keys
    )


def decays(params: PyTree) -> Any:
    """Mark the parameters that weight decay and penalties apply to.

    Returns:
        A tree of bool like params: False on norm scales, biases and router_bias.
    """

    def is_weight(path, _):
        name = path[-1].key
        # router_bias too: balancing sets it, not a gradient (arXiv:2412.19437, section 2.1.2)
        return not (name == "scale" or name.endswith("bias"))

    return jax.tree.map_with_path(is_weight, params)


def rms_norm(x, scale, eps):
    """Scale x[..., d] to unit root mean square, in float32, then by scale[d] (arXiv:1910.07467)."""
    normed = x.astype(jnp.float32)
    normed = normed * jax.lax.rsqrt(jnp.mean(normed * normed, axis=-1, keepdims=True) + eps)
    # Round before the scale multiplies it, as in the released code
    return (normed.astype(x.dtype) * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """The norm `rms_norm` with its learned scale.

    Attributes:
        config: The model.
        size: Width of the normed axis.
        axis: Logical name of the normed axis.
        eps: Default: the config's rms_norm_eps.
    """

    config: ModelConfig
    size: int
    axis: str = "embed"
    eps: float | None = None

    @nn.compact
    def __call__(self, x):
        """Norm the last axis of x [... d]."""
        scale = weight(self, "scale", init=nn.initializers.ones, **{self.axis: self.size})
        return rms_norm(x, scale, self.eps or self.config.rms_norm_eps)


# Number of leading axes that the product contracts, for each weight of a Linear layer
LINEAR = dict(q=1, k=1, v=1, q_down=1, q_up=1, kv_down=1, out=2, gate_up=1, down=1)
# The same for all weights of attention, MLPs and experts. k_up and v_up are not in LINEAR, because decoding
# absorbs them into other products, see models.mla
INPUTS = LINEAR | dict(k_up=1, v_up=1)
# The same for all matrices except embedding and head. The last two rows are DeepSeek-V4's alone
MATRICES = INPUTS | dict(router=1, input=1, head_weights=1)
MATRICES |= dict(kv=1, gate=1, out_down=2, out_up=2)
MATRICES |= dict(mix=2, embedding_input=1, hidden_input=1)


def matrix_input_axes(path: tuple) -> range | None:
    """Return the input axes of any matrix of the network, see input_axes and MATRICES."""
    return input_axes(path, MATRICES)


def input_axes(path, contracted: dict[str, int]):
    """Return the axes of a parameter that its product contracts.

    Args:
        path: The parameter's keys in a tree of params.
        contracted: INPUTS or MATRICES.

    Returns:
        A range of axes; None for a parameter that is not named in `contracted`.
    """
    names = [key.key for key in path]
    if names[-1] not in contracted:
        return None
    # A stack's first axis is layers. In an MoE layer, and a prediction module's block is one, experts follow
    is_stacked = bool({"dense_layers", "moe_layers"} & set(names))
    has_experts = "dense_layers" not in names
    is_of_experts = has_experts and names[-2:] in (["ffn", "gate_up"], ["ffn", "down"])
    # A group of heads, in DeepSeek-V4's attention
    is_of_group = names[-1] == "out_down"
    first_input = is_stacked + is_of_experts + is_of_group
    return range(first_input, first_input + contracted[names[-1]])


def linear(config: ModelConfig, spec: str, x, w, *, power_of_two: bool = False):
    """Compute the product of a Linear layer, in FP8 where config.fp8 is set.

    The product is ops.dot.dot, or ops.fp8_dot.fp8_dot under config.fp8; each device of a mesh
    multiplies its own tokens. Embedding, output head, router and attention's products of
    queries, keys and values never use FP8 and do not call this (arXiv:2412.19437, section 3.3.1).

    Args:
        config: The model.
        spec: An einsum of x and w.
        x: Activations.
        w: The layer's weight.
        power_of_two: FP8's scales for x are powers of two.
    """
    if config.fp8:
        # FP8 rounds the master weights themselves
        product = functools.partial(fp8_dot, spec, power_of_two=power_of_two)
        return by_token(product, spec, x, w, "float32")
    return unrounded(config, spec, x, w)


def unrounded(config: ModelConfig, spec: str, x, w):
    """Compute `linear`'s product without FP8."""
    if current_rules() is not RULES:
        # In a rollout no weight is gathered
        return dot(spec, x, w)
    return by_token(functools.partial(dot, spec), spec, x, w, config.dtype)


# The logical axes of gate and up: with an axis of the two halves, or with both halves in the axis mlp
HALVES_APART = ("embed", "gate_up", "mlp")
MLP_AXES = {3: HALVES_APART, 2: ("embed", "mlp")}


def mlp_split(w_gate_up, w_down):
    """Return the few_tokens.Split of a gated MLP's two weights."""
    return Split((w_gate_up, w_down), (MLP_AXES[w_gate_up.ndim], ("mlp", "embed")))


class GatedMLP(nn.Module):
    """A gated MLP, down(swiglu(gate(x), up(x))), with gate and up in one product.

    Attributes:
        config: The model.
        width: The MLP's intermediate size.
    """

    config: ModelConfig
    width: int

    @property
    def weights(self):
        """The weights (gate and up, down).

        gate and up is [d 2 f]; in a rollout its last two axes are one, see rollout.weights.
        """
        d = self.config.hidden_size
        w_gate_up = weight(self, "gate_up", embed=d, gate_up=2, mlp=self.width)
        return w_gate_up, weight(self, "down", mlp=self.width, embed=d)

    @nn.compact
    def __call__(self, x):
        """Apply the MLP to x, [b t d] or in decoding [b d]."""
        w_gate_up, w_down = self.weights
        if w_gate_up.ndim == 2:
            return added_up(gated_mlp, x, ("batch",), mlp_split(w_gate_up, w_down))
        # b and t stay two axes: either may be split over devices
        x_btd = x if x.ndim == 3 else x[:, None]
        # The letter z says to fp8_dot that these are two Linear layers, which share no tile
        hidden = linear(self.config, "btd,dzf->btzf", x_btd, w_gate_up)
        gate_btf, up_btf = jnp.unstack(save_for_backward(hidden), axis=2)
        out_btd = linear(self.config, "btf,fd->btd", swiglu(gate_btf, up_btf), w_down)
        return out_btd.reshape(x.shape)


def position_tables(config: ModelConfig, positions):
    """Compute the rotary cosines and sines of positions, under the config's rope_scaling.

    Args:
        config: The model.
        positions: int32[...].

    Returns:
        Cosines and sines, float32[..., rope_dim / 2] each.
    """
    dim, theta, scaling = config.rope_dim, config.rope_theta, config.rope_scaling
    if scaling is None:
        return rope.rope_tables(positions, rope.rope_frequencies(dim, theta))
    s = scaling
    if s.rope_type == "linear":
        return rope.rope_tables(positions, rope.rope_frequencies(dim, theta) / s.factor)
    if s.rope_type == "llama3":
        frequencies = rope.llama3_frequencies(
            dim,
            theta,
            factor=s.factor,
            original_max_position_embeddings=s.original_max_position_embeddings,
            low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
        )
        return rope.rope_tables(positions, frequencies)
    frequencies = rope.yarn_frequencies(
        dim,
        theta,
        factor=s.factor,
        original_max_position_embeddings=s.original_max_position_embeddings,
        beta_fast=s.beta_fast,
        beta_slow=s.beta_slow,
    )
    return rope.rope_tables(positions, frequencies, _yarn_amplitude(s))


def _yarn_amplitude(s: RopeScaling):
    """Return YaRN's factor on cosines and sines, as Hugging Face derives it from rope_scaling."""
    if s.attention_factor is not None:
        return s.attention_factor
    if s.mscale and s.mscale_all_dim:
        # Equal in V3, so its tables are not scaled: its factor is in attention's scores, see mla.py
        return rope.yarn_mscale(s.factor, s.mscale) / rope.yarn_mscale(s.factor, s.mscale_all_dim)
    return rope.yarn_mscale(s.factor, 1.0)
