"""The parts of every layer: named weights, RMSNorm, the gated MLP, rotary tables."""

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

# The module of V3.2's attention that selects keys
INDEXER = "indexer"
# Parts of a model that few losses train, each with what a key in their parameters' paths looks like
PARTS = {"mtp": lambda key: key.startswith("mtp_"), "indexer": lambda key: key == INDEXER}


def weight(module: nn.Module, name: str, *, init=None, **axes: int):
    """Declare a float32 parameter of `module`. axes: one keyword a dimension, logical axis = size, in order.

    The sharding rules read the axis names from the parameter's metadata. init: a Flax initializer; default
    normal with the config's initializer_range. An existing parameter is returned unchecked, because
    decoding prepares some in another form (ops.decoding); one with an adapter is merged with it here, inside
    the layer that uses it, so that there is never a second copy of the model.
    """
    if (given := module.get_variable("params", name)) is not None:
        return dense(nn.unbox(given))
    init = init or nn.initializers.normal(module.config.initializer_range)
    boxed = nn.with_logical_partitioning(init, tuple(axes))
    return module.param(name, boxed, tuple(axes.values()), jnp.float32)


def has_gradient(path: tuple, parts: tuple[str, ...] = ()) -> bool:
    """Whether a loss that trains these PARTS gives the parameter with these keys a gradient. It does not give
    router_bias one, which balancing moves (arXiv:2412.19437, section 2.1.2).
    """
    # Anywhere in the path: a student's params may stand beside projections
    keys = [str(key.key) for key in path]
    others = [of_part for part, of_part in PARTS.items() if part not in parts]
    return keys[-1] != "router_bias" and not any(of_part(key) for of_part in others for key in keys)


def decays(params: Any) -> Any:
    """Leaves that weight decay and penalties apply to: a tree of bool, False on norm scales and biases."""

    def is_weight(path, _):
        name = path[-1].key
        # router_bias too: balancing sets it, no gradient does (arXiv:2412.19437, section 2.1.2)
        return not (name == "scale" or name.endswith("bias"))

    return jax.tree.map_with_path(is_weight, params)


def rms_norm(x, scale, eps):
    """Scale x[..., d] to unit root mean square, in float32, then by scale[d] (arXiv:1910.07467)."""
    normed = x.astype(jnp.float32)
    normed = normed * jax.lax.rsqrt(jnp.mean(normed * normed, axis=-1, keepdims=True) + eps)
    # Rounded before the scale multiplies it, as in the released code
    return (normed.astype(x.dtype) * scale).astype(x.dtype)


class RMSNorm(nn.Module):
    """rms_norm with its scale. size: width of the normed axis; axis: its logical name."""

    config: ModelConfig
    size: int
    axis: str = "embed"
    eps: float | None = None

    @nn.compact
    def __call__(self, x):
        scale = weight(self, "scale", init=nn.initializers.ones, **{self.axis: self.size})
        return rms_norm(x, scale, self.eps or self.config.rms_norm_eps)


# For each weight of a Linear layer, how many of its first axes the product contracts
LINEAR = dict(q=1, k=1, v=1, q_down=1, q_up=1, kv_down=1, out=2, gate_up=1, down=1)
# The same for all weights of attention, MLPs and experts: decoding absorbs these two, see models.mla
INPUTS = LINEAR | dict(k_up=1, v_up=1)
# And of all other matrices but embedding and head
MATRICES = INPUTS | dict(router=1, input=1, head_weights=1)


def matrix_input_axes(path: tuple) -> range | None:
    """input_axes of MATRICES."""
    return input_axes(path, MATRICES)


def input_axes(path, contracted: dict[str, int]):
    """The axes of a parameter that its product contracts; None where its name is not in `contracted`, which
    is INPUTS or MATRICES. path: its keys in a tree of params.
    """
    names = [key.key for key in path]
    if names[-1] not in contracted:
        return None
    # Layers come first, then the experts of a MoE layer's own MLP; a prediction module's block is one too
    stacked = bool({"dense_layers", "moe_layers"} & set(names))
    has_experts = "dense_layers" not in names
    of_experts = has_experts and names[-2:] in (["ffn", "gate_up"], ["ffn", "down"])
    first = stacked + of_experts
    return range(first, first + contracted[names[-1]])


def linear(config: ModelConfig, spec: str, x, w, *, power_of_two: bool = False):
    """The product of a Linear layer: ops.dot.dot, or ops.fp8_dot.fp8_dot under config.fp8. There each
    device of a mesh multiplies its own tokens.

    Embedding, output head, router and attention's own products never use FP8 and do not call this
    (arXiv:2412.19437, section 3.3.1).
    """
    if config.fp8:
        product = functools.partial(fp8_dot, spec, power_of_two=power_of_two)
        return by_token(product, spec, x, w)
    return dot(spec, x, w)


# The axes of gate and up, with halves that lie apart or are one axis, and of down
HALVES_APART = ("embed", "gate_up", "mlp")
MLP_AXES = {3: HALVES_APART, 2: ("embed", "mlp")}


def mlp_split(w_gate_up, w_down):
    """The Split of a gated MLP's weights."""
    return Split((w_gate_up, w_down), (MLP_AXES[w_gate_up.ndim], ("mlp", "embed")))


class GatedMLP(nn.Module):
    """down(swiglu(gate(x), up(x))), gate and up in one product."""

    config: ModelConfig
    width: int

    @property
    def weights(self):
        """(gate and up, down). In a rollout the halves are one axis, see rollout.weights."""
        d = self.config.hidden_size
        w_gate_up = weight(self, "gate_up", embed=d, gate_up=2, mlp=self.width)
        return w_gate_up, weight(self, "down", mlp=self.width, embed=d)

    @nn.compact
    def __call__(self, x):
        w_gate_up, w_down = self.weights
        if w_gate_up.ndim == 2:
            return added_up(gated_mlp, x, ("batch",), mlp_split(w_gate_up, w_down))
        # b and t stay two axes: either may be split over devices
        x_btd = x if x.ndim == 3 else x[:, None]
        # By the letter z fp8_dot knows two Linear layers side by side, which share no tile
        hidden = linear(self.config, "btd,dzf->btzf", x_btd, w_gate_up)
        gate_btf, up_btf = jnp.unstack(save_for_backward(hidden), axis=2)
        out_btd = linear(self.config, "btf,fd->btd", swiglu(gate_btf, up_btf), w_down)
        return out_btd.reshape(x.shape)


def position_tables(config: ModelConfig, positions):
    """Rotary cosines and sines of positions int32[...] under rope_scaling: two float32[..., rope_dim / 2]."""
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
    """The factor on cosines and sines, as Hugging Face derives it from rope_scaling."""
    if s.attention_factor is not None:
        return s.attention_factor
    if s.mscale and s.mscale_all_dim:
        # Equal in V3, whose tables are not scaled: its temperature is a factor of the scores (mla.scale)
        return rope.yarn_mscale(s.factor, s.mscale) / rope.yarn_mscale(s.factor, s.mscale_all_dim)
    return rope.yarn_mscale(s.factor, 1.0)
