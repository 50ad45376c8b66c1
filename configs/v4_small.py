"""DeepSeek-V4 in miniature: pre-train a tiny V4 on sums with errors, then reinforce right answers.

python launch/train.py --config=configs/v4_small.py            # or configs/v4_small.py:seed=1
python launch/train.py --config=configs/v4_small.py:model=v3   # DeepSeek-V3 of the same size, to compare

configs/grpo_small.py with another network (arXiv:2606.19348): both have as many parameters, and
see the same tokens.
"""

from configs import grpo_small, models
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, model="v4")
    c = grpo_small.get_config(f"seed={arg.seed}")
    # Compressed entries are of whole documents, so each completion is a row of its own
    c.share_prompts = False
    if arg.model == "v4":
        c.model = models.deepseek_v4_tiny(vocab_size=21)
    elif arg.model != "v3":
        raise ValueError(f"model={arg.model!r} is not here; allowed: v4, v3")
    return c
