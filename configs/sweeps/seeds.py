"""The same experiment from three seeds.

python launch/sweep.py --config=configs/r1_small.py --sweep=configs/sweeps/seeds.py
"""


def sweep(config):
    """Overrides of the config, a dict for each run: dotted field -> value."""
    # Every config has a seed
    del config
    return [{"seed": seed} for seed in range(3)]
