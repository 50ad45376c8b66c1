"""R1-Zero in miniature: pre-train a tiny V3 on sums with errors, then reinforce right answers.

python launch/train.py --config=configs/grpo_small.py          # or configs/grpo_small.py:seed=1
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg, without_fusion_emitters


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=100, prompts_per_step=16, group_size=8)
    )
    c.model = models.deepseek_v3_tiny(vocab_size=21)
    c.base = dict(num_documents=60_000, sequence_length=64, batch_size=32, num_steps=680)
    # Muon learns in 680 steps nearly as much as AdamW in 2,400
    c.base.optimizer = dict(
        kind="muon", learning_rate=6e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05
    )
    c.data = dict(task="arithmetic", num_held_out=256)
    # To "What is 2 + 3?" 6 earns 0, 5 earns 1, and 2 + 3 = 5 earns 2
    c.rewards = dict(correct=1.0, correct_reasoning=1.0)
    c.rollout = dict(max_prompt_length=16, max_completion_length=48, temperature=1.0, slots=128)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    c.optimizer = dict(learning_rate=5e-4, schedule="cosine")
    c.save_every = 40
    # Ten points of a curve of held-out accuracy, for about 1% of the run's time
    c.eval_every = 10
    # Programs of this size are 10 to 25% faster with this flag
    c.xla_flags = without_fusion_emitters()
    return c
