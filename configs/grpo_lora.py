"""GRPO of an adapter (LoRA, arXiv:2106.09685): 1.5B parameters on Colab's single v5e chip.

python launch/train.py --config=configs/grpo_lora.py:model=smollm2                # on a CPU
python launch/train.py --config=configs/grpo_lora.py --config.init_from=FOLDER --config.data.path=MY.jsonl
python launch/plan.py --config=configs/grpo_lora.py --topology=v5e:1x1
python launch/plan.py --config=configs/grpo_lora.py:model=deepseek_v2_lite --topology=v5e:4x4

It is grpo_smollm2.py with an adapter, for the models of adapted_models.py.
"""

from configs import grpo_smollm2
from configs.adapted_models import start_from
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model="qwen2_5_1_5b", seed=0)
    c = grpo_smollm2.get_config(f"seed={arg.seed}")
    start_from(c, arg.model)
    # Ten times the rate for training every parameter
    c.optimizer.learning_rate = 2e-4
    if arg.model == "smollm2":
        return c
    c.rollout.max_completion_length, c.micro_batches = 512, 4
    # In bfloat16 the sampler's probabilities differ a little from the update's
    c.loss.importance_cap = 2.0
    # A long run may forget what it learned: it ends with the policy that had the best mean reward
    c.checkpoints = dict(best="reward", best_is="highest")
    if arg.model == "r1_distill_qwen_7b":
        c.rollout.slots = 8
    if arg.model == "qwen3_0_6b":
        # All parameters are trained: a smaller rate, and moments of half the size
        c.optimizer.update(learning_rate=2e-6, moment_dtype="bfloat16")
    if arg.model == "deepseek_v2_lite":
        # A group for each of sixteen chips
        c.update(prompts_per_step=16, micro_batches=1)
        c.rollout.slots = 128
    return c
