"""What is logged of a step's rollouts."""

import numpy as np


def describe(groups: list, accuracy: str):
    """Metrics of groups of grpo.make_groups. accuracy: the reward that decides whether an answer is right.

    The means skip rewards that failed (NaN).
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
    return {name: float(value) for name, value in metrics.items()}


def _std(rewards):
    scored = rewards[~np.isnan(rewards)]
    # The unbiased one, as in losses.group_advantages
    return scored.std(ddof=1) if len(scored) > 1 else np.nan
