"""ModelConfig: derived fields, and the values that it refuses before anything compiles."""

import dataclasses

import pytest

from configs import models
from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.settings import build

TINY = models.deepseek_v3_tiny()
LLAMA = dict(
    model_type="llama",
    vocab_size=32,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
)


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (TINY, dict(model_type="mamba"), ["'mamba'", "deepseek_v3", "qwen2"]),
        (TINY, dict(dtype="float16"), ["dtype='float16'", "bfloat16"]),
        (TINY, dict(kv_lora_rank=None, v_head_dim=None), ["kv_lora_rank", "v_head_dim"]),
        (TINY, dict(qk_rope_head_dim=15), ["qk_rope_head_dim=15", "even"]),
        (TINY, dict(num_experts_per_tok=None), ["num_experts_per_tok"]),
        (TINY, dict(scoring_func="tanh"), ["scoring_func='tanh'", "sigmoid", "softmax"]),
        (TINY, dict(n_group=3), ["n_routed_experts=8", "n_group=3"]),
        (TINY, dict(topk_group=5), ["topk_group=5", "n_group=4"]),
        (TINY, dict(num_experts_per_tok=5), ["num_experts_per_tok=5", "topk_group"]),
        (TINY, dict(n_group=8, topk_group=4), ["n_group=8", "best two"]),
        (TINY, dict(first_k_dense_replace=3), ["first_k_dense_replace=3", "0..2"]),
        (LLAMA, dict(num_key_value_heads=3), ["num_attention_heads=4", "num_key_value_heads=3"]),
        (LLAMA, dict(head_dim=7), ["head_dim=7", "even"]),
        (LLAMA, dict(head_dim=0), ["head_dim=0 must be at least 1"]),
        (TINY, dict(expert_buffer=0.9), ["expert_buffer=0.9 must be at least 1"]),
        (LLAMA, dict(hidden_size=26), ["hidden_size=26", "num_attention_heads=4"]),
        (LLAMA, dict(num_nextn_predict_layers=1), ["num_nextn_predict_layers", "n_routed_experts"]),
    ],
)
def test_a_config_that_cannot_be_is_an_error_that_names_the_field(base, change, words):
    """Oracle: the message has the field, its value and the allowed values."""
    with pytest.raises(ValueError) as error:
        build(ModelConfig, dict(base, **change), "config.model")
    assert str(error.value).startswith("config.model.")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(rope_type="dynamic", factor=2.0), ["'dynamic'", "llama3", "yarn"]),
        (dict(rope_type="yarn", factor=2.0), ["original_max_position_embeddings"]),
        (
            dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=64),
            ["low_freq_factor", "high_freq_factor"],
        ),
    ],
)
def test_rope_scaling_names_what_it_lacks(fields, words):
    """Oracle: by hand."""
    with pytest.raises(ValueError) as error:
        RopeScaling(**fields)
    for word in words:
        assert word in str(error.value)


def test_heads_default_to_one_key_head_a_query_head():
    """Oracle: Hugging Face's defaults: num_key_value_heads = heads, head_dim = hidden_size / heads."""
    config = ModelConfig(**LLAMA)
    assert (config.num_key_value_heads, config.head_dim) == (4, 6)


def test_a_dense_model_has_no_moe_layers_and_a_sparse_one_counts_them():
    """Oracle: by hand."""
    assert ModelConfig(**LLAMA).num_moe_layers == 0
    config = ModelConfig(**dict(TINY, num_hidden_layers=5, first_k_dense_replace=2))
    assert (config.num_dense_layers, config.num_moe_layers) == (2, 3)


@pytest.mark.parametrize(
    ("given", "ids"), [(None, ()), (2, (2,)), (0, (0,)), ([1, 2], (1, 2)), ((3,), (3,))]
)
def test_end_tokens_are_always_a_tuple(given, ids):
    """Oracle: by hand; token 0 is an end token like any other."""
    assert ModelConfig(**LLAMA, eos_token_id=given).eos_ids == ids


def test_the_config_can_be_hashed_and_not_changed():
    """Oracle: jit takes it as a static argument, so it must hash and stay."""
    config = ModelConfig(**TINY)
    assert hash(config) == hash(ModelConfig(**TINY))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 1
