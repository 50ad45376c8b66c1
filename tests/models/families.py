"""Tiny Hugging Face checkpoints of every family, written by transformers with every parameter random."""

import torch
import transformers

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
YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0)
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


def write_tiny_checkpoint(family, folder, seed=0):
    """Save a random float32 model of a family (a key of FAMILIES) to folder: -> the transformers model.

    Norm scales are about one, biases and the router's correction bias are not zero, so that a parameter
    which is ignored or misplaced shows in the logits.
    """
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
            elif "correction_bias" in name:
                tensor.copy_(0.1 * torch.randn_like(tensor))
            elif "inv_freq" not in name:
                tensor.copy_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    return model
