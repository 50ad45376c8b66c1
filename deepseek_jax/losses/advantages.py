"""Advantages: rewards relative to the other completions of the same prompt.

Tests: tests/losses/test_grpo_by_hand.py, tests/losses/test_grpo.py.
"""

import jax
import jax.numpy as jnp

STD_EPS = 1e-6


def group_advantages(
    rewards: jax.typing.ArrayLike, *, group_size: int, normalize_std: bool = True
) -> jax.Array:
    """Compare each completion with the others of its prompt (arXiv:2402.03300, section 4.1.2).

    A completion that was not scored stays out of its group's mean and std, and gets 0. A group in
    which all scored rewards are equal gets exactly 0. The paper does not define the std or how it
    stays above 0: this is the unbiased std, plus 1e-6.

    Args:
        rewards: float32[b], with the completions of one prompt adjacent. NaN means "not scored".
        group_size: Completions per prompt.
        normalize_std: Divide by the std, see GrpoOptions.

    Returns:
        float32[b], (r - mean) / (std + 1e-6), or r - mean without normalize_std.

    Raises:
        ValueError: If group_size is below 2 or does not divide b.
    """
    rewards_b = jnp.asarray(rewards, jnp.float32)
    if group_size < 2 or len(rewards_b) % group_size:
        raise ValueError(
            f"group_size={group_size} does not cut {len(rewards_b)} rewards into groups; set it "
            "to 2 or more, and the batch to a multiple of it."
        )
    rewards_pi = rewards_b.reshape(-1, group_size)
    scored_pi = ~jnp.isnan(rewards_pi)
    count_p1 = scored_pi.sum(-1, keepdims=True)
    mean_p1 = jnp.where(scored_pi, rewards_pi, 0).sum(-1, keepdims=True) / jnp.maximum(count_p1, 1)
    centred_pi = jnp.where(scored_pi, rewards_pi - mean_p1, 0)
    # Rounding can move the mean of equal rewards off them: the std would turn the difference into
    # +-1
    highest_p1 = jnp.where(scored_pi, rewards_pi, -jnp.inf).max(-1, keepdims=True)
    lowest_p1 = jnp.where(scored_pi, rewards_pi, jnp.inf).min(-1, keepdims=True)
    centred_pi = jnp.where(highest_p1 > lowest_p1, centred_pi, 0)
    if normalize_std:
        variance_p1 = (centred_pi**2).sum(-1, keepdims=True) / jnp.maximum(count_p1 - 1, 1)
        centred_pi = centred_pi / (jnp.sqrt(variance_p1) + STD_EPS)
    return centred_pi.reshape(-1)
