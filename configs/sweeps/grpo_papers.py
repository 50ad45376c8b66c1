"""GRPO and what five papers made of it, three seeds each.

python launch/sweep.py --config=configs/grpo_small.py --sweep=configs/sweeps/grpo_papers.py

Every arm makes four updates of a step's samples: in a single one the ratio is 1, and nothing is clipped.
The numbers are published, but for max_sampling_rounds and CISPO's clip_eps_high, which are ours.
"""

LOSSES: dict[str, dict[str, float]] = {
    "grpo": {},
    # Clip-higher, and dynamic sampling in place of groups whose rewards are all equal (arXiv:2503.14476)
    "dapo": {"loss.clip_eps_high": 0.28, "max_sampling_rounds": 4},
    "dr_grpo": {},
    # The ratio of a whole completion moves less than that of a token (arXiv:2507.18071, section 5.1)
    "gspo": {"loss.clip_eps": 3e-4, "loss.clip_eps_high": 4e-4},
    "cispo": {"loss.clip_eps_high": 1.0},
}
# Two-sided clipping (arXiv:2505.07291, section 4.1)
INTELLECT_2: dict[str, str | float] = {"loss.loss_type": "grpo", "loss.ratio_cap": 4.0}


def sweep(config):
    """Overrides of the config, a dict for each run."""
    # Every config of GRPO has these fields
    del config
    arms = [{"loss.loss_type": name} | fields for name, fields in LOSSES.items()]
    return [
        arm | {"minibatches": 4, "seed": seed} for seed in range(3) for arm in (*arms, INTELLECT_2)
    ]
