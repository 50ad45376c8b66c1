"""What the benchmarks share: the same random weights in PyTorch and in JAX, and interleaved timing."""

import statistics
import tempfile
import time

import torch
import transformers
from rich.console import Console
from rich.table import Table

from deepseek_jax.checkpoint import load_hf

SMOLLM2 = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_theta=1e5,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)
TINY_V3 = dict(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=4,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    num_mtp_layers=0,
    bos_token_id=None,
    eos_token_id=None,
)


def smollm2(dtype=torch.float32):
    """SmolLM2-135M's shape with random weights: (transformers model, ModelConfig, params)."""
    return _pair(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMOLLM2), dtype)


def tiny_v3(dtype=torch.float32):
    """A DeepSeek-V3 of 4 layers and 16 experts, likewise."""
    return _pair(
        transformers.DeepseekV3ForCausalLM, transformers.DeepseekV3Config(**TINY_V3), dtype
    )


def _pair(model_class, config, dtype):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours, params = load_hf(folder)
    return model.to(dtype), ours, params


def interleave(contestants, rounds):
    """Time functions in turn, after one warm-up each: name -> seconds of every round."""
    for run in contestants.values():
        run()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds):
    """name -> median seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title, columns, rows):
    """One rich table; rows of strings."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
