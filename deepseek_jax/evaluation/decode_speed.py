"""Decoding speed of several models on this machine, measured in turns."""

import statistics
import time

import numpy as np

from deepseek_jax.rollout.generation import generate

# Number of tokens in each prompt
PROMPT = 16


def decode_speeds(
    models: dict, *, batch_size: int, new_tokens: int, repeats: int
) -> dict[str, float]:
    """Measure the median tokens per second of rollout.generate for each model, by name.

    The time of the prefill of PROMPT tokens is included. Each model is compiled and run once. Then
    the models take turns, so that other load on the machine slows all of them.

    Args:
        models: Name -> (ModelConfig, params).

    Raises:
        ValueError: As in generate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
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
            # No end token was sampled, so every row really has the new_tokens that the speed counts
            assert rollout.completion_mask.all()
            # The first run compiles, so its time does not count
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: batch_size * new_tokens / statistics.median(s) for name, s in seconds.items()}
