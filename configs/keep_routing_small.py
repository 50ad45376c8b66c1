"""R1-Zero in miniature in bfloat16, with eight updates a batch: with and without kept routing.

python launch/train.py --config=configs/keep_routing_small.py          # or :seed=1,keep_routing=true
python launch/sweep.py --config=configs/keep_routing_small.py --sweep=configs/sweeps/keep_routing.py

In bfloat16 the scores of experts are often nearly equal. So the trainer may send a token to other
experts than the sampler did, and each update of a batch may send it to others again. V3.2 uses the
experts of the rollout in all updates (arXiv:2512.02556, section 3.1).
"""

from configs import r1_zero_small
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, keep_routing=False)
    c = r1_zero_small.get_config(f"seed={arg.seed}")
    c.model.dtype = "bfloat16"
    c.num_steps, c.minibatches, c.epochs = 60, 4, 2
    c.keep_routing = arg.keep_routing
    # A line of the log has the metrics of one step, and here every step counts
    c.save_every, c.log_every = 60, 1
    return c
