"""Models with the same random weights in PyTorch and in JAX."""

import tempfile

import torch
import transformers

from configs import models
from deepseek_jax.checkpoint import load_hf


def _for_transformers(sizes, **more):
    """Turn a block of configs/models.py into arguments of a transformers config, without end tokens."""
    own = {name: size for name, size in sizes.items() if name != "model_type"}
    return own | dict(bos_token_id=None, eos_token_id=None) | more


SMOLLM2 = _for_transformers(models.smollm2_135m())
TINY_V3 = _for_transformers(models.deepseek_v3_tiny(), num_key_value_heads=8, num_mtp_layers=0)
SMALL_V3 = TINY_V3 | dict(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=16,
    num_experts_per_tok=4,
)


def smollm2(dtype=torch.float32):
    """SmolLM2-135M's shape with random weights: (transformers model, ModelConfig, params)."""
    return _pair(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMOLLM2), dtype)


def smollm2_half(dtype=torch.float32):
    """SmolLM2-135M at half its width: 288, in 9 heads of 32, 3 of keys and values; same returns."""
    sizes = SMOLLM2 | dict(hidden_size=288, intermediate_size=768)
    return _pair(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes), dtype)


def tiny_v3(dtype=torch.float32, **sizes):
    """The tiny DeepSeek-V3 of configs/models.py, with other sizes if given; same returns."""
    config = transformers.DeepseekV3Config(**TINY_V3 | sizes)
    return _pair(transformers.DeepseekV3ForCausalLM, config, dtype)


def small_v3(dtype=torch.float32):
    """A DeepSeek-V3 of 4 layers and 16 experts; same returns."""
    return _pair(
        transformers.DeepseekV3ForCausalLM, transformers.DeepseekV3Config(**SMALL_V3), dtype
    )


def _pair(model_class, config, dtype):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours, params = load_hf(folder)
    return model.to(dtype), ours, params
