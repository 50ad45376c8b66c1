"""The bytes and speed bounds of serving models, by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from configs import models
from deepseek_jax.costs.deployment import (
    cache_bytes,
    chips_for,
    distinct_experts,
    read_cache_bytes,
    served,
    step_bytes,
    tensor_bytes,
    tokens_per_second,
    unquantised_bytes,
    weight_bytes,
)
from deepseek_jax.models import ModelConfig, build_model, count_params

TINY = ModelConfig(**models.deepseek_v3_tiny())
# What each part of it has, by hand: numbers, and blocks of 128 x 128 begun.
ATTENTION = 64 * 32 + 32 * 384 + 64 * 64 + 32 * 256 + 128 * 64, 1 + 3 + 1 + 2 + 1
DENSE = 3 * 64 * 256, 3 * 2
EXPERT = 3 * 64 * 64, 3
REST = 2 * (2 * 64 + 2 * 32) + 64 + 2 * 32 * 64 + 8 * 64  # norms, embedding and head, router
BIAS = 4 * 8  # of the router, float32


def named(name):
    return served(build_model(getattr(models, name)()))


def test_weight_bytes_of_the_tiny_model():
    """Oracle: by hand, from the sizes in its config: two layers, one of 8 routed experts and a shared one."""
    parts = [ATTENTION, ATTENTION, DENSE, *[EXPERT] * 9]
    numbers, blocks = (sum(column) for column in zip(*parts, strict=True))
    assert numbers + REST + 8 == count_params(TINY)
    assert weight_bytes(TINY, "bf16") == 2 * (numbers + REST) + BIAS
    assert weight_bytes(TINY, "fp8") == numbers + 4 * blocks + 2 * REST + BIAS
    assert unquantised_bytes(TINY) == 2 * REST + BIAS


def test_fp8_bytes_are_those_of_the_released_checkpoint():
    """Oracle: DeepSeek-V3's released files, multi-token prediction included: 680,571,043,840 numbers in E4M3
    and 688.57 GB in all, embedding and head written twice.
    """
    config = build_model(models.deepseek_v3())
    sizes = tensor_bytes(config, "fp8")
    wide = tensor_bytes(config, "bf16")
    quantised = sum(wide[name] // 2 for name in wide if sizes[name] < wide[name])
    assert quantised == 680_571_043_840
    twice = 2 * sizes["model.embed_tokens.weight"]
    assert round((weight_bytes(config, "fp8") + twice) / 1e9, 2) == 688.57


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("deepseek_v3", 2 * 61 * (512 + 64)),
        ("deepseek_v3_2", 2 * 61 * (512 + 64 + 128)),
        ("r1_distill_llama_8b", 2 * 32 * 2 * 8 * 128),
    ],
)
def test_cache_bytes_of_a_token(name, by_hand):
    """Oracle: a latent and one rotary key a layer, 70,272 B (arXiv:2412.19437, section 2.1.1), and V3.2's
    index key; keys and values of 8 heads.
    """
    assert cache_bytes(named(name)) == by_hand


def test_a_sparse_step_reads_all_index_keys_and_the_latents_that_it_selects():
    """Oracle: by hand: at 128K tokens 128 numbers of each, and 576 of 2048 of them; at 2048 tokens everything
    is selected and nothing scored.
    """
    dense, sparse = named("deepseek_v3"), named("deepseek_v3_2")
    layer = 131_072 * 128 + 2048 * 576
    assert read_cache_bytes(sparse, 131_072) == 2 * 61 * layer
    assert read_cache_bytes(sparse, 2048) == read_cache_bytes(dense, 2048)
    assert read_cache_bytes(dense, 131_072) == 131_072 * cache_bytes(dense)


def test_experts_that_tokens_meet_together():
    """Oracle: every way in which 3 tokens choose 2 of 4 experts, enumerated."""
    groups = dict(n_group=1, topk_group=1)
    config = dataclasses.replace(TINY, n_routed_experts=4, num_experts_per_tok=2, **groups)
    pairs = list(itertools.combinations(range(4), 2))
    met = [len(set().union(*chosen)) for chosen in itertools.product(pairs, repeat=3)]
    np.testing.assert_allclose(distinct_experts(config, 3), np.mean(met), rtol=1e-12)
    assert distinct_experts(config, 1) == 2


def test_a_step_reads_the_experts_that_its_tokens_meet():
    """Oracle: by hand: for a single token, all but the embedding and 6 of 8 experts of the one MoE layer; for
    so many tokens that they choose all experts, all but the embedding.
    """
    embedding, expert = 2 * 32 * 64, 2 * EXPERT[0]
    all_read = weight_bytes(TINY, "bf16") - embedding
    np.testing.assert_allclose(step_bytes(TINY, "bf16", 1, 0), all_read - 6 * expert, rtol=1e-12)
    np.testing.assert_allclose(step_bytes(TINY, "bf16", 1000, 0), all_read, rtol=1e-12)


def test_a_tied_embedding_is_read_as_the_head():
    """Oracle: all 134,515,008 parameters of SmolLM2-135M, two bytes each."""
    assert step_bytes(named("smollm2_135m"), "bf16", 1, 0) == 2 * 134_515_008


def test_the_bound_of_llama_8b():
    """Oracle: by hand: two sequences of 100 tokens on 2,765 GB/s read 8,030,261,248 weights less an embedding
    of 128,256 x 4,096, and 200 x 131,072 B of cache.
    """
    read = 2 * (8_030_261_248 - 128_256 * 4096) + 200 * 131_072
    found = tokens_per_second(named("r1_distill_llama_8b"), "bf16", 2, 100, 2765e9)
    np.testing.assert_allclose(found, 2 * 2765e9 / read, rtol=1e-12)
    assert 367 < found < 368


def test_chips_that_hold_the_weights():
    """Oracle: by hand: R1's 673 GB in FP8, 6.6 times 95 GiB; a chip that is full; one byte more."""
    assert chips_for(weight_bytes(named("deepseek_v3"), "fp8"), 95 * 2**30) == 7
    assert (chips_for(32, 16), chips_for(33, 16)) == (2, 3)


def test_another_form_is_an_error():
    """Oracle: the message, by hand."""
    with pytest.raises(ValueError, match="form='int8' is not one of bf16, fp8"):
        weight_bytes(TINY, "int8")
