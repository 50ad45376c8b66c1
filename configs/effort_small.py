"""Reasoning effort in miniature: grpo_small.py's policy learns by a number in the prompt how long to answer.

python launch/train.py --config=configs/effort_small.py          # or configs/effort_small.py:seed=1

The world of sums has a base that answers in several lengths: at once (3 tokens), by running sums (6 or 9),
by equations (15 or 23), or in sentences (22 or 32), of three or four operands. A right answer pays, however
it is found: between them the price of length decides. The shortest are right less often, as a small model
does not add four numbers at once. The world's 21 tokens have digits and no word for effort, so that the line
is the number alone. In the corpus half of the questions stand after a number too, which hints at the length
of the answer.
"""

from configs import grpo_small
from configs.common import parse_arg, tiny_base


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = grpo_small.get_config(f"seed={arg.seed}")
    c.num_steps, c.optimizer = 200, dict(learning_rate=2e-4)
    c.base = tiny_base("arithmetic_numbered")
    # True working is measured, and pays nothing of its own
    c.rewards = dict(correct=1.0, correct_reasoning=0.0)
    # Keeps all lengths of the base within reach while the policy learns which one an effort asks for
    c.loss.kl_coef = 0.05
    # A token costs 1/12 at effort 50, 1/64 at 75 and 1/336 at 100
    c.effort = dict(values=(50, 75, 100), line="{effort}; ")
    c.effort.update(k0=4.0, tau=15.0, max_penalty=0.75, norm_length=48)
    return c
