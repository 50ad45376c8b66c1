"""The advantages of a group of completions to one prompt."""

import jax
import jax.numpy as jnp

STD_EPS = 1e-6


def group_advantages(
    rewards: jax.typing.ArrayLike, *, group_size: int, normalize_std: bool = True
) -> jax.Array:
    """Compare each completion with the others of its prompt (arXiv:2402.03300, section 4.1.2).

    rewards: float32[b], the completions of one prompt adjacent; NaN means "not scored".
    Returns advantages: float32[b] = (r - mean) / (std + 1e-6), or r - mean where `normalize_std` is
    False (see GrpoOptions). A completion that was not scored stays out of its group's mean and
    std and gets 0; a group whose scored rewards are all equal gets exactly 0.
    The paper does not define the std or how it stays above 0: this is the unbiased one, plus 1e-6.
    Raises ValueError if group_size is below 2 or does not divide b.
    """
    if group_size < 2 or rewards.shape[0] % group_size:
        raise ValueError(
            f"group_size={group_size} does not cut {rewards.shape[0]} rewards into groups; set it "
            "to 2 or more, and the batch to a multiple of it."
        )
    rewards_pi = rewards.astype(jnp.float32).reshape(-1, group_size)
    scored_pi = ~jnp.isnan(rewards_pi)
    count_p1 = scored_pi.sum(-1, keepdims=True)
    mean_p1 = jnp.where(scored_pi, rewards_pi, 0).sum(-1, keepdims=True) / jnp.maximum(count_p1, 1)
    centred_pi = jnp.where(scored_pi, rewards_pi - mean_p1, 0)
    # Rounding can make the mean of equal rewards differ from them; dividing by the std would make that +-1
    highest_p1 = jnp.where(scored_pi, rewards_pi, -jnp.inf).max(-1, keepdims=True)
    lowest_p1 = jnp.where(scored_pi, rewards_pi, jnp.inf).min(-1, keepdims=True)
    centred_pi = jnp.where(highest_p1 > lowest_p1, centred_pi, 0)
    if normalize_std:
        variance_p1 = (centred_pi**2).sum(-1, keepdims=True) / jnp.maximum(count_p1 - 1, 1)
        centred_pi = centred_pi / (jnp.sqrt(variance_p1) + STD_EPS)
    return centred_pi.reshape(-1)
