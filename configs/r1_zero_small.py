"""R1-Zero in miniature: a tiny V3 that mixes two languages is reinforced for right answers in tags.

python launch/train.py --config=configs/r1_zero_small.py          # or configs/r1_zero_small.py:seed=1
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg, tiny_base

# Tokens of the bilingual world, padding and the end token
VOCAB_SIZE = 202


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=120, prompts_per_step=16, group_size=8)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=VOCAB_SIZE)
    c.base = tiny_base("bilingual")
    c.data = dict(task="bilingual_puzzles", template="r1_zero", num_held_out=256)
    c.accuracy = "puzzle_answer"
    # Weight 0: language consistency is measured, but gives no reward
    c.rewards = dict(puzzle_answer=1.0, think_answer_format=1.0, language_consistency=0.0)
    c.rollout = dict(max_prompt_length=16, max_completion_length=64, temperature=1.0, slots=128)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    c.optimizer = dict(learning_rate=2e-4)
    c.save_every, c.log_every = 40, 10
    return c
