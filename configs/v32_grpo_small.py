"""DeepSeek-V3.2's GRPO in miniature: grpo_small.py with the changes of v32_grpo.py.

python launch/train.py --config=configs/v32_grpo_small.py          # or configs/v32_grpo_small.py:seed=1

A step has four updates, so the policy moves away from the one that sampled.
"""

from configs import grpo_small, models, v32_grpo
from configs.common import parse_arg, tiny_base


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = grpo_small.get_config(f"seed={arg.seed}")
    # The indexers stay random, because neither pre-training the base nor GRPO trains them. They
    # select about half of a row's keys
    c.model = models.deepseek_v3_2_tiny(vocab_size=c.model.vocab_size)
    c.base = tiny_base("arithmetic")
    c.num_steps, c.minibatches, c.optimizer = 120, 4, dict(learning_rate=2e-4)
    c.loss.kl_coef = 0.01
    v32_grpo.stabilise(c, top_k=8)
    return c
