"""Decoding speeds."""

from types import SimpleNamespace

from deepseek_jax.evaluation import decode_speed
from tests.tiny import tiny_model


def test_speeds_are_tokens_by_the_seconds_of_a_models_own_rounds(monkeypatch):
    """Oracle: by hand, on a clock that moves when a model has decoded: 2 x 4 tokens by the median of 2, 1 and
    4 seconds, and of 4, 8 and 16; the first round, which compiles, takes a thousand.
    """
    clock, real = SimpleNamespace(now=0.0), decode_speed.generate
    seconds = iter((1e3, 1e3, 2, 4, 1, 8, 4, 16))

    def generate(*args, **how):
        rollout = real(*args, **how)
        clock.now += next(seconds)
        return rollout

    monkeypatch.setattr(decode_speed, "generate", generate)
    monkeypatch.setattr(decode_speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    kinds = {"teacher": tiny_model("gqa"), "student": tiny_model("gqa")}
    speeds = decode_speed.decode_speeds(kinds, batch_size=2, new_tokens=4, repeats=3)
    assert speeds == {"teacher": 4.0, "student": 1.0}
