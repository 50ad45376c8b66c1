"""Tiny models of DeepSeek-V4 by transformers, every parameter random, and their parameters as ours."""

import numpy as np
import torch
import transformers

from deepseek_jax.models.config import RopeScaling
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW, V4Config

transformers.logging.set_verbosity_error()

LAYERS = (WINDOW, CSA, HCA, CSA)
RATES = ((CSA, 4), (HCA, 8))
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=len(LAYERS),
    num_attention_heads=4,
    head_dim=16,
    q_lora_rank=20,
    o_groups=2,
    o_lora_rank=12,
    sliding_window=8,
    # With few heads ReLU leaves many scores at exactly 0, where transformers breaks ties by the row's width
    index_n_heads=16,
    index_head_dim=12,
    index_topk=4,
    n_routed_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=24,
    swiglu_limit=0.5,  # so that a clamp acts on many numbers
    routed_scaling_factor=1.5,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    max_position_embeddings=256,
)
# YaRN acts at every length: transformers with "default" would hide a model without it
YARN = dict(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0
)
ROPE_DIM = 8


def config(**changes) -> V4Config:
    """Our config of these sizes: all kinds of layers, the first with a table of experts."""
    fields = dict(
        layer_types=LAYERS,
        compress_rates=RATES,
        num_hash_layers=1,
        qk_rope_head_dim=ROPE_DIM,
        rope_scaling=RopeScaling(**YARN),
    )
    return V4Config(**SIZES | fields | changes)


def hf_model(layers=LAYERS, seed=0):
    """transformers' model of these sizes in float32, all that it has random and none of it zero."""
    settings = transformers.DeepseekV4Config(
        **SIZES | dict(num_hidden_layers=len(layers)),
        layer_types=list(layers),
        compress_rates=dict(RATES),
        mlp_layer_types=["hash_moe"] + ["moe"] * (len(layers) - 1),
        partial_rotary_factor=ROPE_DIM / SIZES["head_dim"],
        rope_parameters=dict(YARN),
        compress_rope_theta=160000.0,
    )
    settings._attn_implementation = "eager"
    model = transformers.DeepseekV4ForCausalLM(settings).float().eval()
    generator = torch.Generator().manual_seed(seed)

    def random(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if name.endswith(("norm.weight", "scale")) else 0.0
            size = 1.0 if name.endswith(("sinks", "position_bias")) else 0.3
            parameter.copy_(around + size * random(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * random(buffer))
            if name.endswith("tid2eid"):
                a, e = SIZES["num_experts_per_tok"], SIZES["n_routed_experts"]
                buffer.copy_(torch.arange(buffer.numel()).reshape(-1, a) % e)
    return model


def tensors(model):
    """{name: array} of a model's parameters and of the buffers that a checkpoint has."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def gradients(model):
    """{name: gradient} after a backward pass, zeros where there is none."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        name: np.zeros(tensor.shape) if found.get(name) is None else found[name].numpy()
        for name, tensor in model.state_dict().items()
    }


def half_split(array, axis=-1):
    """Order the last ROPE_DIM numbers of an axis as ops.rope does: pairs apart, not side by side."""
    array = np.moveaxis(array, axis, -1)
    plain, rotary = np.split(array, [array.shape[-1] - ROPE_DIM], axis=-1)
    rotary = np.concatenate([rotary[..., ::2], rotary[..., 1::2]], axis=-1)
    return np.moveaxis(np.concatenate([plain, rotary], axis=-1), -1, axis)


def params(named, cfg: V4Config, order=half_split):
    """Our parameters from transformers' tensors, or our gradients from its gradients."""
    layers = {
        f"layers_{i}": layer(Names(named, f"model.layers.{i}."), cfg, kind, order)
        for i, kind in enumerate(cfg.layers)
    }
    top = Names(named, "")
    return layers | dict(
        embedding=top["model.embed_tokens.weight"],
        head=top["lm_head.weight"],
        final_norm=dict(scale=top["model.norm.weight"]),
        stream_end=stream_part(Names(named, "model.hc_head.hc_"), cfg),
    )


class Names:
    """The tensors below a prefix, float32."""

    def __init__(self, named, prefix):
        self.named, self.prefix = named, prefix

    def __getitem__(self, name):
        return np.asarray(self.named[self.prefix + name], np.float32)

    def below(self, prefix):
        return Names(self.named, self.prefix + prefix)


def stream_part(names, cfg):
    mix = names["fn"].reshape(-1, cfg.hc_mult, cfg.hidden_size)
    return dict(mix=np.moveaxis(mix, 0, -1), base_bias=names["base"], scale=names["scale"])


def layer(names, cfg, kind, order=half_split):
    return dict(
        attention_mixing=stream_part(names.below("attn_hc."), cfg),
        attention_norm=dict(scale=names["input_layernorm.weight"]),
        attention=attention(names.below("self_attn."), cfg, kind, order),
        ffn_mixing=stream_part(names.below("ffn_hc."), cfg),
        ffn_norm=dict(scale=names["post_attention_layernorm.weight"]),
        ffn=experts(names.below("mlp."), kind),
    )


def attention(names, cfg, kind, order=half_split):
    h, x, g = cfg.num_attention_heads, cfg.head_dim, cfg.o_groups
    # o_a_proj: rows are groups of ranks, columns the heads of a group
    down = names["o_a_proj.weight"].reshape(g, cfg.o_lora_rank, h // g, x)
    made = dict(
        q_down=names["q_a_proj.weight"].T,
        q_norm=dict(scale=names["q_a_norm.weight"]),
        q_up=order(names["q_b_proj.weight"].T.reshape(-1, h, x)),
        kv=order(names["kv_proj.weight"].T),
        kv_norm=dict(scale=order(names["kv_norm.weight"])),
        sink_bias=names["sinks"],
        out_down=order(np.transpose(down, (0, 2, 3, 1)), axis=2),
        out_up=names["o_b_proj.weight"].T.reshape(g, cfg.o_lora_rank, -1),
    )
    if kind.rate:
        made["compressor"] = compressor(names.below("compressor."), x, order)
    if kind.attention == CSA:
        below = names.below("compressor.indexer.")
        q_up = below["q_b_proj.weight"].T
        made["indexer"] = dict(
            q_up=order(q_up.reshape(len(q_up), cfg.index_n_heads, -1)),
            head_weights=below["scorer.weights_proj.weight"].T,
            compressor=compressor(below, cfg.index_head_dim, order),
        )
    return made


def compressor(names, width, order=half_split):
    def series(array):
        return order(array.reshape(len(array), -1, width))

    return dict(
        kv=series(names["kv_proj.weight"].T),
        gate=series(names["gate_proj.weight"].T),
        position_bias=series(names["position_bias"]),
        norm=dict(scale=order(names["kv_norm.weight"])),
    )


def experts(names, kind):
    def halves(gate_up):
        # [e 2f d] -> [e d 2 f]
        e, rows, d = gate_up.shape
        return np.moveaxis(gate_up.reshape(e, 2, rows // 2, d), -1, 1)

    shared = names.below("shared_experts.")
    gate_up = np.stack([shared[f"{part}_proj.weight"].T for part in ("gate", "up")], axis=1)
    chooser = dict(expert_table=names["gate.tid2eid"]) if kind.has_table else {}
    if not kind.has_table:
        chooser = dict(router_bias=names["gate.e_score_correction_bias"])
    return chooser | dict(
        router=names["gate.weight"].T,
        gate_up=halves(names["experts.gate_up_proj"]),
        down=np.swapaxes(names["experts.down_proj"], 1, 2),
        shared=dict(gate_up=gate_up, down=shared["down_proj.weight"].T),
    )
