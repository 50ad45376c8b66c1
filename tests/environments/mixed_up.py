"""A fault for tests of what notices it, in a worker process: it imports no jax."""

from deepseek_jax.environments import worker


def reward(key, seed, count):
    """worker.reward of another conversation's environment, if its process has any."""
    found = worker._state.environments
    other = next((each for each in found if each != key), key)
    found[key], found[other] = found[other], found[key]
    return worker.reward(key, seed, count)
