"""A reward model in miniature: a tiny DeepSeek-V3 that scores how helpful or safe answers are.

python launch/train.py --config=configs/reward_model_small.py              # pairs
python launch/train.py --config=configs/reward_model_small.py:kind=safety  # labelled completions

It is pre-trained on the bilingual small world. Then it learns which answers to everyday requests
are more helpful, or which completions are safe.

Published (arXiv:2501.12948, section 3.1): 66,000 pairs or 106,000 labelled responses, 256 a step,
learning rate 6e-6, one epoch, up to 8192 tokens. A model this small, trained for so short a time,
needs other numbers.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg

NUM_TRAIN, EPOCHS = 4096, 3


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, kind="helpfulness")
    c = ConfigDict(
        dict(recipe="reward_model", seed=arg.seed, kind=arg.kind, batch_size=32, sequence_length=64)
    )
    c.num_steps = NUM_TRAIN * EPOCHS // c.batch_size
    c.model = models.deepseek_v3_tiny(vocab_size=256)
    c.base = dict(
        corpus="bilingual",
        num_documents=20_000,
        sequence_length=64,
        batch_size=32,
        num_steps=600,
    )
    c.base.optimizer = dict(
        learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    c.data = dict(num_train=NUM_TRAIN, num_held_out=512)
    c.optimizer = dict(learning_rate=1e-3, schedule="cosine", warmup_steps=10)
    c.save_every, c.log_every = 100, 10
    return c
