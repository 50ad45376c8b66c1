"""AdamW and Muon in every stage of a pre-training, three seeds each, at the same learning rates.

python launch/sweep.py --config=configs/pretrain_small.py --sweep=configs/sweeps/optimizers.py

Muon's update of a matrix is scaled to the size of AdamW's, so that a rate that was chosen for AdamW does for
both (arXiv:2502.16982, section 2.2).
"""


def sweep(config):
    """Overrides of the config, a dict for each run."""
    return [
        {f"stages.{stage}.optimizer.kind": kind for stage in config.stages} | {"seed": seed}
        # Both with a seed before the next seed: a sweep that is stopped early still compares
        for seed in range(3)
        for kind in ("adamw", "muon")
    ]
