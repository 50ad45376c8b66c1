"""Every architecture that we load samples, in miniature, with the switches of its published config.json."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint.hf_config import ARCHITECTURES, parse_config
from deepseek_jax.models import abstract_init, forward
from deepseek_jax.rollout import AnswerOptions, Policy
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.quick import others_slow
from tests.tiny import VOCAB

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    hidden_act="silu",
    max_position_embeddings=320,
    initializer_range=0.02,
)
# The original context is shorter than a row, so that what extends it counts
YARN = dict(type="yarn", factor=40, original_max_position_embeddings=8, beta_fast=32, beta_slow=1)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8,
)
LATENT = SIZES | dict(
    num_key_value_heads=4,
    attention_bias=False,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    n_routed_experts=16,
    moe_intermediate_size=8,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    rms_norm_eps=1e-6,
    rope_theta=10000,
    tie_word_embeddings=False,
)
V2 = LATENT | dict(
    model_type="deepseek_v2",
    scoring_func="softmax",
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    num_experts_per_tok=6,
    norm_topk_prob=False,
    n_shared_experts=2,
    routed_scaling_factor=16.0,
    rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707),
)
V3 = LATENT | dict(
    model_type="deepseek_v3",
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    n_group=8,
    topk_group=4,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    n_shared_experts=1,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=1.0),
)
V2_LITE = V2 | dict(
    q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0
)
# V3 without compressed queries
MOONLIGHT = V3 | dict(
    q_lora_rank=None,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=6,
    n_shared_experts=2,
    routed_scaling_factor=2.446,
    num_nextn_predict_layers=0,
    rms_norm_eps=1e-5,
    rope_theta=50000.0,
    rope_scaling=None,
)
# Sixteen index heads: with few, ReLU leaves many scores at 0, and ties decide what is selected
V32 = V3 | dict(model_type="deepseek_v32", index_n_heads=16, index_head_dim=16, index_topk=4)
GROUPED = SIZES | dict(
    num_hidden_layers=1, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6
)
QWEN2 = GROUPED | dict(model_type="qwen2", use_sliding_window=False, tie_word_embeddings=False)
QWEN3 = GROUPED | dict(
    model_type="qwen3",
    head_dim=16,
    attention_bias=False,
    use_sliding_window=False,
    tie_word_embeddings=True,
)
LLAMA3 = GROUPED | dict(
    model_type="llama",
    attention_bias=False,
    mlp_bias=False,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=LLAMA3_ROPE,
    tie_word_embeddings=False,
)
PUBLISHED = {
    "DeepSeek-V2": V2,
    "DeepSeek-V2-Lite": V2_LITE,
    "DeepSeek-V3": V3,
    "Moonlight": MOONLIGHT,
    "DeepSeek-V3.2": V32,
    "Qwen2": QWEN2,
    "Qwen3": QWEN3,
    "Llama 3": LLAMA3,
}
QUESTIONS = [{"question": "What is 1 + 2?"}, {"question": "What is 3 + 4 + 5?"}]
LENGTH, ROW = 6, 24
logits_of = jax.jit(forward, static_argnums=0)


def random_model(name):
    """(ModelConfig, params) of the config.json: every parameter random, norm scales about 1."""
    config, rng = parse_config(PUBLISHED[name]), np.random.default_rng(0)

    def leaf(path, shape):
        noise = rng.standard_normal(shape.shape, np.float32)
        return 0.2 * noise + (path[-1].key == "scale")

    return config, jax.tree.map_with_path(leaf, nn.unbox(abstract_init(config)))


def greedily(config, params, prompt):
    """(tokens, their log-probabilities): a whole forward pass for each token."""
    row, ids, logprobs = [*prompt], [], []
    for _ in range(LENGTH):
        tokens, segments = (np.zeros((1, ROW), np.int32) for _ in range(2))
        tokens[0, : len(row)], segments[0, : len(row)] = row, 1
        logits = logits_of(config, params, tokens, segment_ids=segments)[0, len(row) - 1]
        logp = np.asarray(jax.nn.log_softmax(logits))
        ids.append(int(logp.argmax()))
        logprobs.append(logp.max())
        row.append(ids[-1])
    return ids, logprobs


# V3 is in test_engine, against transformers; without compressed queries Moonlight has what V2-Lite has, and
# GQA is that of one architecture with the most of its own
QUICK = ("DeepSeek-V2", "Moonlight", "DeepSeek-V3.2", "Qwen3", "Llama 3")


@pytest.mark.parametrize("name", others_slow(PUBLISHED, *QUICK))
def test_a_policy_of_each_architecture_answers(name):
    """Oracle: models.forward, the whole row anew for each token, and its most likely token. Both add in
    float32, in another order: 1e-5.
    """
    config, params = random_model(name)
    policy = Policy(config, params, arithmetic_tokenizer(), "{question}\n")
    asked = policy.with_prompts(QUESTIONS)
    options = AnswerOptions(max_completion_length=LENGTH, temperature=0.0, slots=2)
    rollout = policy.answer(asked, options).rollout
    # Few of them end early
    assert rollout.completion_mask.sum() > LENGTH
    for i, example in enumerate(asked):
        ids, logprobs = greedily(config, params, example["prompt_ids"])
        mask = rollout.completion_mask[i]
        ends = [at for at, token in enumerate(ids, 1) if token in policy.eos_ids]
        assert mask.sum() == min([LENGTH, *ends])
        np.testing.assert_array_equal(rollout.completion_ids[i][mask], ids[: mask.sum()])
        np.testing.assert_allclose(
            rollout.sampler_logprobs[i][mask], logprobs[: mask.sum()], atol=1e-5, rtol=1e-5
        )


def test_every_architecture_has_a_published_config_here():
    """Oracle: the table of what is loaded; latent attention with and without compressed queries."""
    assert {raw["model_type"] for raw in PUBLISHED.values()} == set(ARCHITECTURES)
    ranks = {raw["model_type"]: set() for raw in PUBLISHED.values()}
    for raw in PUBLISHED.values():
        ranks[raw["model_type"]].add(raw.get("q_lora_rank"))
    assert ranks["deepseek_v2"] == ranks["deepseek_v3"] == {None, 12}
