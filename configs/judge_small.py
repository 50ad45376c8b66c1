"""A judge in miniature: a tiny DeepSeek-V3 that grades two answers and names the better one.

python launch/train.py --config=configs/judge_small.py          # or configs/judge_small.py:seed=1

It is pre-trained on the bilingual small world, then fine-tuned to judge answers to requests.
"""

from ml_collections import ConfigDict

from configs import models, reward_model_small
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="judge", seed=arg.seed, num_steps=500, batch_size=32, sequence_length=64)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=256)
    c.base = reward_model_small.get_config().base
    c.data = dict(num_train=8192, num_held_out=512)
    c.optimizer = dict(learning_rate=3e-3, schedule="cosine", warmup_steps=20)
    c.save_every, c.log_every = 100, 20
    return c
