"""Rollouts by hand, for groups of completions."""

import numpy as np

from deepseek_jax.rollout.completions import Rollout


def rollout_of(ids, mask=None, logprobs=None, truncated=None, observed=None):
    """The Rollout of one group. By default ids above 0 are sampled, with log-probabilities of 0, and each
    completion ended by itself.
    """
    ids = np.asarray(ids)
    return Rollout(
        completion_ids=ids,
        completion_mask=ids > 0 if mask is None else np.asarray(mask),
        sampler_logprobs=np.zeros(ids.shape, np.float32) if logprobs is None else logprobs,
        truncated=np.zeros(len(ids), bool) if truncated is None else np.asarray(truncated),
        observed_mask=observed,
    )
