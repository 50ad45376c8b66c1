"""A game in miniature: a tiny V3 that guesses a number carelessly learns to halve the range.

python launch/train.py --config=configs/guess_small.py          # or configs/guess_small.py:seed=1
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg, without_fusion_emitters


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=100, prompts_per_step=16, group_size=8)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=23)
    c.base = dict(corpus="guess", num_documents=60_000, sequence_length=64, batch_size=32)
    c.base.update(num_steps=480)
    c.base.optimizer = dict(
        kind="muon", learning_rate=6e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    # Each of the 16 numbers eight times
    c.data = dict(task="guess", num_held_out=128)
    c.environment = "deepseek_jax.worlds.guess.environment:GuessNumber"
    c.conversation = dict(turns=16, turn_length=3, workers=2)
    c.accuracy = "guessed"
    # The game itself gives the reward, less after each turn. Whether the number was guessed is
    # measured, but earns nothing
    c.rewards = dict(guessed=0.0, GuessNumber=1.0)
    c.rollout = dict(max_prompt_length=4, max_completion_length=80, temperature=1.0, slots=128)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    c.optimizer = dict(learning_rate=1e-3, schedule="cosine")
    c.save_every = 40
    c.xla_flags = without_fusion_emitters()
    return c
