"""Decoding speed of several models on this machine, measured in turns."""

import statistics
import time

import numpy as np

from deepseek_jax.rollout import generate

# Tokens of each prompt
PROMPT = 16


def decode_speeds(models: dict, *, batch_size: int, new_tokens: int, repeats: int):
    """Median tokens per second of rollout.generate, prefill of PROMPT tokens included: dict name -> float.

    models: dict name -> (ModelConfig, params). Each is compiled and run once; then the models take turns, so
    that other load on the machine slows all of them. Raises ValueError as generate does.
    """
    seconds = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, (config, params) in models.items():
            prompts = np.random.default_rng(repeat).integers(
                0, config.vocab_size, (batch_size, PROMPT)
            )
            began = time.perf_counter()
            rollout = generate(
                config,
                params,
                prompts.tolist(),
                max_completion_length=new_tokens,
                slots=batch_size,
            )
            # No end token was sampled, so every row has the new_tokens that the speed counts
            assert rollout.completion_mask.all()
            # The first run compiles, and its time does not count
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: batch_size * new_tokens / statistics.median(s) for name, s in seconds.items()}
