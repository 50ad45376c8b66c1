"""The last stage of a conversion to sparse attention, and its dense twin: the same updates on the same rows,
with attention over all keys to the end. The twin's indexers learn beside it, and change nothing else but the
norm by which all gradients are clipped together.

python launch/sweep.py --config=configs/v32_small.py --sweep=configs/sweeps/dense_twin.py
"""

from configs.sweeps.draws import grid


def sweep(config):
    """Overrides of the config, a dict for each run."""
    last = max(config.stages)
    return grid({f"stages.{last}.indexer_loss": ["dense", "sparse"], "seed": [config.seed]})
