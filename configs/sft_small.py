"""Fine-tuning in miniature: a tiny DeepSeek-V3 learns correct worked sums.

python launch/train.py --config=configs/sft_small.py          # or configs/sft_small.py:seed=1

It is pre-trained on sums with errors, then fine-tuned on correct ones.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="sft", seed=arg.seed, num_steps=80, batch_size=16, sequence_length=64)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=21)
    c.base = dict(num_documents=20_000, sequence_length=64, batch_size=32, num_steps=600)
    c.base.optimizer = dict(
        learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    c.data = dict(task="arithmetic", num_held_out=256)
    c.accuracy = "correct"
    c.rewards = dict(correct=1.0, correct_reasoning=1.0)
    c.answers = dict(num_prompts=256, max_completion_length=48, temperature=1.0, slots=128)
    c.optimizer = dict(learning_rate=1e-3, schedule="cosine", warmup_steps=5)
    c.eval_every, c.log_every = 20, 5
    return c
