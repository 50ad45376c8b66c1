"""Reasoning effort in miniature: a number in the prompt says how long the answer should be.

python launch/train.py --config=configs/effort_small.py          # or configs/effort_small.py:seed=1

It is grpo_small.py with such a number, and the policy learns to follow it. The base, in the world
of sums, answers in several lengths, for three or four operands: at once (3 tokens), by running sums
(6 or 9), by equations (15 or 23), or in sentences (22 or 32). A right answer earns the same by any
of these ways, so the price of its length decides between them. The shortest answers are right less
often, because a small model does not add four numbers at once.

The world's 21 tokens have digits and no word for effort, so the line of the prompt has only the
number. In the corpus, half of the questions stand after a number too, which hints at the length of
the answer.
"""

from configs import grpo_small
from configs.common import parse_arg, tiny_base


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = grpo_small.get_config(f"seed={arg.seed}")
    c.num_steps, c.optimizer = 200, dict(learning_rate=2e-4)
    # Each held-out question is asked with all three efforts
    c.eval_every = 20
    c.base = tiny_base("arithmetic_numbered")
    # True working is measured, but earns no reward
    c.rewards = dict(correct=1.0, correct_reasoning=0.0)
    # The KL keeps all lengths of the base within reach, while the policy learns which length an
    # effort asks for
    c.loss.kl_coef = 0.05
    # A token costs 1/12 at effort 50, 1/64 at 75 and 1/336 at 100
    c.effort = dict(values=(50, 75, 100), line="{effort}; ")
    c.effort.update(k0=4.0, tau=15.0, max_penalty=0.75, norm_length=48)
    return c
