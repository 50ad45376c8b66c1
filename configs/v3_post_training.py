"""DeepSeek-V3's post-training: supervised fine-tuning, a reward model, and reinforcement.

python launch/train.py --config=configs/v3_post_training.py:stage=sft
python launch/train.py --config=configs/v3_post_training.py:stage=helpfulness
python launch/train.py --config=configs/v3_post_training.py:stage=rl

It follows arXiv:2412.19437, section 5, with the recipes of R1's stages and V3's own numbers.
Replace the paths by your own, see configs/r1.py.

Published: 1.5M conversations, two epochs, a cosine learning rate from 5e-6 to 1e-6, packing without
attention between samples, and GRPO. Its rewards come from rules where answers can be checked, and
elsewhere from a reward model that starts from the fine-tuned checkpoint. The other numbers are
R1's, if published, or ours, such as conversations of 1,000 tokens on average.
"""

from configs import r1
from configs.common import stage_config

SFT_TOKENS = 1_500_000 * 1000


def get_config(arg=None):
    return stage_config(STAGES, arg, default="sft")


def _sft():
    c = r1.get_config("stage=sft")
    c.num_steps = -(-2 * SFT_TOKENS // (c.batch_size * c.sequence_length))
    c.data.path, c.data.template = "/data/v3_sft.jsonl", "chat"
    # A fifth of 5e-6 is 1e-6, the published end
    c.optimizer = dict(learning_rate=5e-6, schedule="cosine", final_fraction=0.2)
    c.rewards = dict(math_verify=1.0)
    c.answers.max_completion_length = 8192
    return c


def _helpfulness():
    c = r1.get_config("stage=helpfulness")
    c.init_from = "/checkpoints/DeepSeek-V3-SFT"
    c.data.path, c.data.template = "/data/v3_preferences.jsonl", "chat"
    return c


def _rl():
    c = r1.get_config("stage=scenarios")
    c.init_from = "/checkpoints/DeepSeek-V3-SFT"
    c.data.path, c.data.template = "/data/v3_questions.jsonl", "chat"
    c.rewards = dict(math_verify=1.0)
    c.rollout.max_completion_length, c.rollout.temperature = 8192, 1.0
    c.general = dict(num_steps=c.num_steps, per_step=256, path="/data/v3_prompts.jsonl")
    c.general.rewards = dict(helpful=1.0)
    c.reward_models["helpful"].path = "/checkpoints/DeepSeek-V3-helpfulness"
    del c.reward_models["safe"]
    return c


STAGES = {"sft": _sft, "helpfulness": _helpfulness, "rl": _rl}
