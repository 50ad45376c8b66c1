"""Named model sizes, as plain dicts of ModelConfig's fields.

Published models have the values of their released config.json.
"""

# V3's long context (arXiv:2412.19437, section 4.3): s = 40, alpha = 1 (beta_slow), beta = 32 (beta_fast)
YARN = dict(
    rope_type="yarn",
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    original_max_position_embeddings=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)


def deepseek_v3() -> dict:
    """DeepSeek-V3 and R1: 671B parameters, 37B active (arXiv:2412.19437, section 4.2)."""
    return dict(
        model_type="deepseek_v3",
        vocab_size=129280,
        hidden_size=7168,
        intermediate_size=18432,
        num_hidden_layers=61,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=1.0),
        max_position_embeddings=163840,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def deepseek_v3_2() -> dict:
    """DeepSeek-V3.2 (arXiv:2512.02556): V3 with an indexer of 2048 keys in every layer."""
    return deepseek_v3() | dict(
        model_type="deepseek_v32", index_n_heads=64, index_head_dim=128, index_topk=2048
    )


def deepseek_v4_flash() -> dict:
    """DeepSeek-V4-Flash: 284B parameters, 13B active (arXiv:2606.19348)."""
    return dict(
        model_type="deepseek_v4",
        vocab_size=129280,
        hidden_size=4096,
        num_hidden_layers=43,
        num_attention_heads=64,
        head_dim=512,
        qk_rope_head_dim=64,
        q_lora_rank=1024,
        o_groups=8,
        o_lora_rank=1024,
        sliding_window=128,
        # Two layers of a window alone, then CSA and HCA in turn; the last one is of the prediction module
        compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
        index_n_heads=64,
        index_head_dim=128,
        index_topk=512,
        n_routed_experts=256,
        num_experts_per_tok=6,
        moe_intermediate_size=2048,
        num_hash_layers=3,
        routed_scaling_factor=1.5,
        num_nextn_predict_layers=1,
        rope_scaling=dict(YARN, factor=16.0, original_max_position_embeddings=65536),
        max_position_embeddings=1048576,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def deepseek_v2_lite() -> dict:
    """DeepSeek-V2-Lite: 16B parameters, 2.4B active (arXiv:2405.04434, appendix B)."""
    return dict(
        model_type="deepseek_v2",
        vocab_size=102400,
        hidden_size=2048,
        intermediate_size=10944,
        num_hidden_layers=27,
        num_attention_heads=16,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        scoring_func="softmax",
        norm_topk_prob=False,
        rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707),
        max_position_embeddings=163840,
        bos_token_id=100000,
        eos_token_id=100001,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def deepseek_v3_tiny(vocab_size: int = 32) -> dict:
    """DeepSeek-V3's architecture in miniature, which a laptop trains.

    It has latent attention, one dense layer and one MoE layer.
    """
    return dict(
        model_type="deepseek_v3",
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=32,
        v_head_dim=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.0,
        max_position_embeddings=256,
        initializer_range=0.1,
        # Below the usual 10,000, because a tiny model sees tens of positions: the slowest of these
        # frequencies turns by a radian in 75 positions
        rope_theta=100.0,
    )


def deepseek_v3_2_tiny(vocab_size: int = 32) -> dict:
    """DeepSeek-V3.2's architecture in miniature: deepseek_v3_tiny with an indexer that selects 16 keys."""
    return deepseek_v3_tiny(vocab_size) | dict(
        model_type="deepseek_v32", index_n_heads=16, index_head_dim=32, index_topk=16
    )


def deepseek_v4_tiny(vocab_size: int = 32) -> dict:
    """DeepSeek-V4's architecture in miniature, with as many parameters as deepseek_v3_tiny.

    It has one layer of each kind: a window alone, CSA and HCA. A table chooses the experts of the
    first.
    """
    return dict(
        model_type="deepseek_v4",
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=8,
        head_dim=32,
        qk_rope_head_dim=16,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=32,
        sliding_window=24,
        layer_types=(
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ),
        compress_rates=(("compressed_sparse_attention", 4), ("heavily_compressed_attention", 8)),
        index_n_heads=16,
        index_head_dim=16,
        index_topk=8,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        routed_scaling_factor=1.0,
        num_hash_layers=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        # As in deepseek_v3_tiny, and the ratio of the two as published
        rope_theta=100.0,
        compress_rope_theta=1600.0,
    )


def deepseek_v3_tiled(vocab_size: int = 32) -> dict:
    """DeepSeek-V3's architecture as small as a TPU's kernels take it: their tiles are 128 wide."""
    return deepseek_v3_tiny(vocab_size) | dict(
        hidden_size=128,
        num_attention_heads=16,
        q_lora_rank=128,
        kv_lora_rank=128,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        moe_intermediate_size=128,
        max_position_embeddings=2048,
        initializer_range=0.02,
        rope_theta=10_000.0,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def deepseek_v3_2_tiled(vocab_size: int = 32) -> dict:
    """DeepSeek-V3.2's architecture, of deepseek_v3_tiled's sizes; its indexer selects 64 keys."""
    return deepseek_v3_tiled(vocab_size) | dict(
        model_type="deepseek_v32", index_n_heads=16, index_head_dim=128, index_topk=64
    )


def deepseek_v3_mini(vocab_size: int = 264) -> dict:
    """DeepSeek-V3's architecture, small, with every part that pre-training uses.

    It has a dense layer, two layers of experts in groups, and a multi-token prediction module. A
    laptop trains it on bytes in minutes.
    """
    return dict(
        model_type="deepseek_v3",
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        max_position_embeddings=1024,
    )


def deepseek_v3_2_mini(vocab_size: int = 264) -> dict:
    """deepseek_v3_mini with an indexer in every layer, which selects 128 keys."""
    return deepseek_v3_mini(vocab_size) | dict(
        model_type="deepseek_v32", index_n_heads=8, index_head_dim=32, index_topk=128
    )


def _tiny_student(model_type, vocab_size, **other_fields):
    return dict(
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.1,
        # The value of deepseek_v3_tiny, the teacher
        rope_theta=100.0,
        **other_fields,
    )


def qwen2_tiny(vocab_size: int = 32) -> dict:
    """Qwen2's architecture in miniature: a student of deepseek_v3_tiny.

    It has grouped queries, and biases on q, k and v.
    """
    return _tiny_student("qwen2", vocab_size)


def llama_tiny(vocab_size: int = 32) -> dict:
    """Llama's architecture in miniature: a student of deepseek_v3_tiny."""
    return _tiny_student("llama", vocab_size)


def _qwen2(
    hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size=152064, **other_fields
):
    return dict(
        model_type="qwen2",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        bos_token_id=151643,
        eos_token_id=151643,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
        **other_fields,
    )


def qwen2_5_math_1_5b() -> dict:
    """Qwen2.5-Math-1.5B, the base of R1-Distill-Qwen-1.5B (arXiv:2501.12948).

    The distilled checkpoint unties its head.
    """
    return _qwen2(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True)


def qwen2_5_1_5b_instruct() -> dict:
    """Qwen2.5-1.5B-Instruct."""
    fields = _qwen2(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True, rope_theta=1e6)
    return fields | dict(max_position_embeddings=32768, eos_token_id=151645)


def r1_distill_qwen_1_5b() -> dict:
    """R1-Distill-Qwen-1.5B: Qwen2.5-Math-1.5B with an untied head."""
    return _qwen2(1536, 8960, 28, 12, 2, 151936, max_position_embeddings=131072)


def r1_distill_qwen_7b() -> dict:
    """R1-Distill-Qwen-7B, on Qwen2.5-Math-7B."""
    return _qwen2(3584, 18944, 28, 28, 4, max_position_embeddings=131072)


def r1_distill_qwen_14b() -> dict:
    """R1-Distill-Qwen-14B, on Qwen2.5-14B."""
    return _qwen2(
        5120, 13824, 48, 40, 8, rope_theta=1e6, rms_norm_eps=1e-5, max_position_embeddings=131072
    )


def r1_distill_qwen_32b() -> dict:
    """R1-Distill-Qwen-32B, on Qwen2.5-32B."""
    return _qwen2(
        5120, 27648, 64, 40, 8, rope_theta=1e6, rms_norm_eps=1e-5, max_position_embeddings=131072
    )


def qwen3_0_6b() -> dict:
    """Qwen3-0.6B.

    Queries and keys are normalised, and head_dim is above hidden_size / num_attention_heads.
    """
    return dict(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=1e6,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        bos_token_id=151643,
        eos_token_id=151645,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def _llama3(hidden_size, intermediate_size, layers, heads):
    return dict(
        model_type="llama",
        vocab_size=128256,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        rope_theta=5e5,
        rope_scaling=dict(LLAMA3),
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=128000,
        eos_token_id=128001,
        dtype="bfloat16",
        scan_layers=True,
        remat="full",
    )


def r1_distill_llama_8b() -> dict:
    """R1-Distill-Llama-8B, on Llama-3.1-8B."""
    return _llama3(4096, 14336, 32, 32)


def r1_distill_llama_70b() -> dict:
    """R1-Distill-Llama-70B, on Llama-3.3-70B-Instruct."""
    return _llama3(8192, 28672, 80, 64)


def llama3_1_405b() -> dict:
    """Llama-3.1-405B (arXiv:2407.21783), a published step of training."""
    return _llama3(16384, 53248, 126, 128)


def smollm2_135m() -> dict:
    """SmolLM2-135M-Instruct (arXiv:2502.02737): real weights that a laptop trains."""
    return dict(
        model_type="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=1e5,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
