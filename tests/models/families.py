"""Tiny Hugging Face checkpoints of every family, written by transformers with every parameter random."""

import itertools
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers.modeling_layers import MtpLayer

transformers.logging.set_verbosity_error()

COMMON = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=6,
    max_position_embeddings=256,
    initializer_range=0.1,
    bos_token_id=1,
    eos_token_id=2,
)
LATENT = dict(
    kv_lora_rank=24,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=9,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    num_key_value_heads=6,
)
# With few heads ReLU leaves many scores at exactly 0, where transformers breaks ties by the row's width
INDEX = dict(index_n_heads=16, index_head_dim=16, index_topk=24)
YARN = dict(
    rope_type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0
)
GROUPED = dict(num_key_value_heads=2)

FAMILIES = {
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **COMMON,
        **LATENT,
        q_lora_rank=20,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_mtp_layers=0,
        rope_parameters=dict(YARN, rope_theta=10000.0, mscale=1.0, mscale_all_dim=0.707),
    ),
    "deepseek_v32": lambda: transformers.DeepseekV32Config(
        **COMMON,
        **LATENT,
        **INDEX,
        q_lora_rank=20,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        rope_parameters=dict(YARN, rope_theta=10000.0, mscale=1.0, mscale_all_dim=0.707),
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **COMMON,
        **LATENT,
        q_lora_rank=None,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        routed_scaling_factor=1.0,
        topk_method="greedy",
        rope_parameters=dict(YARN, rope_theta=10000.0, mscale=0.707, mscale_all_dim=0.707),
    ),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON, **GROUPED, tie_word_embeddings=False),
    "qwen2_tied": lambda: transformers.Qwen2Config(**COMMON, **GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(
        **COMMON,
        **GROUPED,
        head_dim=16,
        rope_parameters=dict(rope_type="default", rope_theta=1e6),
    ),
    "llama": lambda: transformers.LlamaConfig(
        **COMMON,
        **GROUPED,
        rms_norm_eps=1e-5,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=5e5,
            factor=8.0,
            original_max_position_embeddings=32,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    ),
    "smollm2": lambda: transformers.LlamaConfig(
        **COMMON,
        **GROUPED,
        tie_word_embeddings=True,
        rms_norm_eps=9.999999747378752e-06,
        rope_parameters=dict(rope_type="default", rope_theta=1e5),
    ),
}


def write_tiny_checkpoint(family, folder, seed=0, **fields):
    """Save a random float32 model of a family (a key of FAMILIES) to folder: -> the transformers model.

    fields: of its config, in place of those there.

    No parameter is left at its initial value, so that one which is ignored or misplaced shows in the logits.
    """
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.update(fields)
    config._attn_implementation = "eager"
    model = _random(transformers.AutoModelForCausalLM.from_config(config).float().eval())
    model.save_pretrained(folder)
    return model


def write_released_checkpoint(folder, seed=0, fp8=True, family="deepseek_v3"):
    """Write a tiny DeepSeek-V3 or V3.2 as released: -> (transformers model, its MtpLayer, {name: torch
    tensor}).

    One multi-token prediction layer under the released names, bfloat16, and with fp8 the projections as
    e4m3 with one scale for 128 x 128 of them, ragged last blocks, all scales in the second of two files.
    Without fp8 everything is float32. The modules hold the numbers before any rounding. V3.2's scales are
    powers of two, but for those of o_proj: some of V3.1's are none.
    """
    config = FAMILIES[family]()
    config.hidden_size, config.v_head_dim, config.num_mtp_layers = 160, 20, 1
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = _random(transformers.AutoModelForCausalLM.from_config(config).float().eval())
    layer = len(model.model.layers)
    if family == "deepseek_v32":
        # transformers has no kind for a prediction layer's MLP
        config.mlp_layer_types = [*config.mlp_layer_types, "sparse"]
    block, norm = type(model.model.layers[-1]), type(model.model.norm)
    mtp = _random(MtpLayer(config, block, norm, layer).float().eval())
    tensors = {name: tensor.float() for name, tensor in _unfused(model.state_dict())}
    for name, tensor in _unfused(mtp.state_dict()):
        if name == "post_norm.weight":
            name = "shared_head.norm.weight"
        tensors[f"model.layers.{layer}.{name.removeprefix('mtp_block.')}"] = tensor.float()
    tensors[f"model.layers.{layer}.embed_tokens.weight"] = tensors[
        "model.embed_tokens.weight"
    ].clone()
    tensors[f"model.layers.{layer}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    scales = {}
    if fp8:
        for name, tensor in tensors.items():
            if any(part in name for part in PROJECTIONS) and "weights_proj" not in name:
                power_of_two = family == "deepseek_v32" and "o_proj" not in name
                tensors[name], scales[f"{name}_scale_inv"] = _quantized(tensor, power_of_two)
            elif "correction_bias" not in name:
                tensors[name] = tensor.bfloat16()
    _write(folder, config, tensors, scales)
    return model, mtp, tensors | scales


# Parts of the names of what is FP8 in the released files
PROJECTIONS = "a_proj b_proj q_proj kv_a_proj o_proj gate_proj up_proj down_proj wq_b wk.".split()


def _random(module):
    """Every parameter random: norm scales about one, biases and the correction bias not zero."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if "inv_freq" not in name:
                tensor.copy_(0.1 * torch.randn_like(tensor) + ("norm" in name))
    return module


def _unfused(state):
    """A state dict's tensors under checkpoint names: one tensor an expert and projection."""
    for name, tensor in state.items():
        prefix, fused, kind = name.partition("mlp.experts.")
        if not fused:
            yield name, tensor
            continue
        projections = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        for expert, whole in enumerate(tensor):
            for projection, part in zip(projections, whole.chunk(len(projections)), strict=True):
                yield f"{prefix}{fused}{expert}.{projection}.weight", part.contiguous()


def _quantized(tensor, power_of_two):
    values = torch.empty_like(tensor, dtype=torch.float8_e4m3fn)
    scale = torch.empty([-(-size // 128) for size in tensor.shape])
    for i, j in itertools.product(*map(range, scale.shape)):
        at = (slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1)))
        scale[i, j] = tensor[at].abs().max() / 448
        if power_of_two:
            scale[i, j] = scale[i, j].log2().ceil().exp2()
        values[at] = (tensor[at] / scale[i, j]).to(values.dtype)
    return values, scale


def _write(folder, config, tensors, scales):
    architecture = type(config).__name__.replace("Config", "ForCausalLM")
    raw = config.to_dict() | {"architectures": [architecture], "torch_dtype": "bfloat16"}
    files = [tensors, scales] if scales else [tensors]
    weight_map = {}
    for i, part in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        save_file(part, Path(folder) / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if scales:
        raw["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
        if config.model_type == "deepseek_v32":
            raw["quantization_config"]["scale_fmt"] = "ue8m0"
    (Path(folder) / "config.json").write_text(json.dumps(raw))
    index = {"metadata": {}, "weight_map": weight_map}
    (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
