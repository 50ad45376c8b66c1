"""Every published size, to the last parameter, from shapes alone."""

import dataclasses

import pytest

from configs import models
from deepseek_jax.models import build_model, count_params

MTP = 11_610_068_224  # its embedding and head are the main model's
PUBLISHED = {
    "deepseek_v3": 671_026_419_200 + MTP,
    "deepseek_v2_lite": 15_706_484_224,
    "qwen2_5_math_1_5b": 1_543_714_304,
    "r1_distill_qwen_1_5b": 1_777_088_000,
    "r1_distill_qwen_7b": 7_615_616_512,
    "r1_distill_qwen_14b": 14_770_033_664,
    "r1_distill_qwen_32b": 32_763_876_352,
    "qwen3_0_6b": 596_049_920,
    "r1_distill_llama_8b": 8_030_261_248,
    "r1_distill_llama_70b": 70_553_706_496,
    "smollm2_135m": 134_515_008,
}


def named(name):
    return build_model(getattr(models, name)())


def test_deepseek_v3_2_is_v3_and_an_indexer_in_each_layer():
    """Oracle: by hand: 64 heads of 128 from the query latent, a key head and its norm, heads' weights."""
    indexer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert count_params(named("deepseek_v3_2")) == PUBLISHED["deepseek_v3"] + 62 * indexer


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_size_has_the_published_number_of_parameters(name):
    """Oracle: the released checkpoints' counts."""
    assert count_params(named(name)) == PUBLISHED[name]


def test_deepseek_v3_without_multi_token_prediction_has_671b_parameters():
    """Oracle: 2vd + d + 61 (attention + 2d) + 3 dense + 58 (257 experts + router) (arXiv:2412.19437, 4.2)."""
    d, v = 7168, 129280
    attention = d * 1536 + 1536 + 1536 * 128 * 192 + d * 576 + 512 + 512 * 128 * 256 + 128 * 128 * d
    dense, expert, router = 3 * d * 18432, 3 * d * 2048, 256 * d + 256
    by_hand = 2 * v * d + d + 61 * (attention + 2 * d) + 3 * dense + 58 * (257 * expert + router)
    config = dataclasses.replace(named("deepseek_v3"), num_nextn_predict_layers=0)
    assert count_params(config) == by_hand == 671_026_419_200
