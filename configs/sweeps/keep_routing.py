"""GRPO of a model with experts: updates that keep those of the rollout, and updates that choose anew.

python launch/sweep.py --config=configs/keep_routing_small.py --sweep=configs/sweeps/keep_routing.py
"""

from configs.sweeps.draws import grid


def sweep(config):
    """Overrides of the config, a dict for each run."""
    # Every config of GRPO has both fields
    del config
    return grid({"keep_routing": [False, True], "seed": range(3)})
