"""DeepSeek-V3.2's GRPO in miniature: grpo_small.py with what v32_grpo.py adds, and with four updates a step,
between which the policy leaves the one that sampled.

python launch/train.py --config=configs/v32_grpo_small.py          # or configs/v32_grpo_small.py:seed=1
"""

from configs import grpo_small, models, v32_grpo
from configs.common import parse_arg, tiny_base


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = grpo_small.get_config(f"seed={arg.seed}")
    # Its indexers stay random, as neither a base nor GRPO trains them. They select about half of a row's keys
    c.model = models.deepseek_v3_2_tiny(vocab_size=c.model.vocab_size)
    c.base = tiny_base("arithmetic")
    c.num_steps, c.minibatches, c.optimizer = 120, 4, dict(learning_rate=2e-4)
    c.loss.kl_coef = 0.01
    v32_grpo.stabilise(c, top_k=8)
    return c
