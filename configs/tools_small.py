"""Tools in miniature: a tiny DeepSeek-V3 that mostly guesses long sums learns to call a calculator.

python launch/train.py --config=configs/tools_small.py          # or configs/tools_small.py:lying,seed=1
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg, without_fusion_emitters


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, lying=False)
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=100, prompts_per_step=16, group_size=8)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=19)
    c.base = dict(corpus="calculator", num_documents=60_000, sequence_length=64, batch_size=32)
    c.base.update(num_steps=480)
    c.base.optimizer = dict(
        kind="muon", learning_rate=6e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    c.data = dict(task="calculator", num_held_out=256)
    # The control: a tool of the same name that is always wrong
    module = "lying_tools" if arg.lying else "tools"
    c.tools = (f"deepseek_jax.worlds.calculator.{module}:add",)
    # A call and its end token are 12 tokens
    c.conversation = dict(turns=3, turn_length=12, workers=2)
    c.rewards = dict(answered=1.0)
    c.rollout = dict(max_prompt_length=16, max_completion_length=48, temperature=1.0, slots=128)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    c.optimizer = dict(learning_rate=5e-4, schedule="cosine")
    c.save_every = 40
    c.xla_flags = without_fusion_emitters()
    return c
