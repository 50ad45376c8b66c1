"""Two learning rates, three seeds each: six runs of any experiment whose optimizer has one.

python launch/sweep.py --config=configs/sft_small.py --sweep=configs/sweeps/learning_rates.py
"""

from configs.sweeps.draws import grid


def sweep(config):
    """Overrides of the config, a dict for each run: a third of its learning rate, and the rate itself."""
    rate = config.optimizer.learning_rate
    return grid({"optimizer.learning_rate": [round(rate / 3, 6), rate], "seed": range(3)})
