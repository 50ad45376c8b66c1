"""Decoding speeds."""

import time

from deepseek_jax.evaluation.decode_speed import decode_speeds
from tests.tiny import tiny_model


def test_speeds_fit_in_the_time_that_measuring_took():
    """Oracle: the clock around the call: one timed round of each model is shorter than the whole."""
    kinds = {"teacher": tiny_model("gqa"), "student": tiny_model("gqa")}
    began = time.perf_counter()
    speeds = decode_speeds(kinds, batch_size=2, new_tokens=4, repeats=1)
    took = time.perf_counter() - began
    assert list(speeds) == list(kinds)
    assert 0 < sum(2 * 4 / speed for speed in speeds.values()) < took
