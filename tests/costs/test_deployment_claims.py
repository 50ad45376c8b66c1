"""Ratios of R1 to its students, by hand."""

import numpy as np
import pytest

from configs import models
from deepseek_jax.costs.deployment import served
from deepseek_jax.costs.deployment_claims import Finding, findings
from deepseek_jax.models import build_model

TEACHER, QWEN_7B, LLAMA_8B, QWEN_32B = (
    served(build_model(getattr(models, name)()))
    for name in (
        "deepseek_v3",
        "r1_distill_qwen_7b",
        "r1_distill_llama_8b",
        "r1_distill_qwen_32b",
    )
)
LOAD = dict(batch_size=128, context_length=4096, chip_bytes=95 * 2**30)
BIASES = 4 * 256 * 58  # of the router, float32
TEACHER_BYTES = 2 * (671_026_419_200 - 256 * 58) + BIASES


def found(student, name):
    return {f.assumption: f.found for f in findings(TEACHER, {name: student}, **LOAD)}


def test_parameters_against_a_student_of_7b():
    """Oracle: the published counts; 36.6B parameters that a token uses (arXiv:2412.19437, 4.2: 37B with the
    embedding), and all but the embedding, norms and biases of Qwen's.
    """
    ratios = found(QWEN_7B, "r1_distill_qwen_7b")
    np.testing.assert_allclose(ratios["all parameters"], 671_026_419_200 / 7_615_616_512)
    met = 7_615_616_512 - 152064 * 3584 - 57 * 3584 - 28 * (3584 + 2 * 512)
    np.testing.assert_allclose(ratios["those that a token meets"], 36.62e9 / met, rtol=1e-3)


def test_memory_against_a_student_of_8b():
    """Oracle: by hand, two bytes a parameter, and 128 x 4,096 tokens of 70,272 and of 131,072 B."""
    ratios = found(LLAMA_8B, "r1_distill_llama_8b")
    np.testing.assert_allclose(ratios["weights, both bf16"], TEACHER_BYTES / 16_060_522_496)
    with_cache = (TEACHER_BYTES + 2**19 * 70_272) / (16_060_522_496 + 2**19 * 131_072)
    np.testing.assert_allclose(ratios["bf16, with the cache of 128 x 4096"], with_cache)
    np.testing.assert_allclose(ratios["the cache alone"], 70_272 / 131_072)
    released = ratios["weights as released: FP8, bf16"]
    np.testing.assert_allclose(released, 673.15e9 / 16_060_522_496, rtol=1e-4)


def test_speed_against_a_student_of_32b():
    """Oracle: by hand: a step of a whole batch in bfloat16 reads all but the embedding (R1: of its routed
    experts the share that 128 tokens meet) and 128 x 4,096 tokens of cache; 14 chips hold R1 in bfloat16, 7
    as released, one its student. In bfloat16 no batch exceeds the ratio of all weights.
    """
    ratios = found(QWEN_32B, "r1_distill_qwen_32b")
    experts = 2 * 58 * 256 * 3 * 7168 * 2048
    read = TEACHER_BYTES - 2 * 129280 * 7168 - experts * (1 - 8 / 256) ** 128 + 2**19 * 70_272
    student = 2 * (32_763_876_352 - 152064 * 5120)
    by_hand = read / (student + 2**19 * 262_144)
    np.testing.assert_allclose(ratios["batch 128 x 4096, both bf16"], by_hand)
    limit = ratios["at most: every expert read, no cache, both bf16"]
    np.testing.assert_allclose(limit, (TEACHER_BYTES - 2 * 129280 * 7168) / student)
    assert all(ratio <= limit for ratio in ratios.values())
    alone = ratios["batch 1, as released: FP8, bf16"]
    together = ratios["batch 1, each on its fewest chips, as released"]
    np.testing.assert_allclose(together, alone / 7)


@pytest.mark.parametrize(
    ("ratio", "holds"), [(80.0, True), (64.1, True), (99.9, True), (63.9, False), (100.1, False)]
)
def test_a_claim_holds_up_to_a_quarter(ratio, holds):
    """Oracle: by hand: 80 / 1.25 = 64 and 80 x 1.25 = 100."""
    assert Finding("student", "a claim", 80.0, "an assumption", ratio).holds == holds


def test_nothing_is_found_for_a_student_of_whom_nothing_is_claimed():
    """Oracle: an empty list."""
    assert findings(TEACHER, {"qwen3_0_6b": QWEN_7B}, **LOAD) == []
