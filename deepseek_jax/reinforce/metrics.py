"""What is logged of a step's rollouts."""

import numpy as np


def describe(groups: list, accuracy: str):
    """Metrics of groups of grpo.make_groups. accuracy: the reward that decides whether an answer is right.

    The means skip rewards that failed (NaN). Groups that were asked with an effort have some of their own.
    """
    rewards = np.stack([group["rewards"] for group in groups])
    lengths = np.concatenate([group["mask"].sum(1) for group in groups])
    metrics = {
        "reward": np.nanmean(rewards),
        "reward_group_std": np.nanmean([_std(row) for row in rewards]),
        "completion_length": lengths.mean(),
        "completion_length_max": lengths.max(),
        "truncated_share": np.mean([group["truncated"] for group in groups]),
    }
    for name in groups[0]["parts"]:
        part = np.array([group["parts"][name] for group in groups])
        # All NaN: no question of this step has this reward (scenarios)
        if not np.isnan(part).all():
            metrics[f"reward_{name}"] = np.nanmean(part)
    metrics["accuracy"] = metrics.get(f"reward_{accuracy}", np.nan)
    for effort in sorted({group["effort"] for group in groups} - {None}):
        own = [group for group in groups if group["effort"] == effort]
        lengths = np.concatenate([group["mask"].sum(1) for group in own])
        metrics[f"completion_length_effort_{effort}"] = lengths.mean()
        right = np.array([group["parts"][accuracy] for group in own])
        # All NaN: only general questions were asked with it
        if not np.isnan(right).all():
            metrics[f"accuracy_effort_{effort}"] = np.nanmean(right)
    return {name: float(value) for name, value in metrics.items()}


def _std(rewards):
    scored = rewards[~np.isnan(rewards)]
    # The unbiased one, as in losses.group_advantages
    return scored.std(ddof=1) if len(scored) > 1 else np.nan
