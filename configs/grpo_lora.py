"""GRPO by adapters (LoRA, arXiv:2106.09685): a model of 1.5B parameters on Colab's one v5e chip.

python launch/train.py --config=configs/grpo_lora.py:model=smollm2                # on a CPU
python launch/train.py --config=configs/grpo_lora.py --config.init_from=FOLDER --config.data.path=MY.jsonl
python launch/plan.py --config=configs/grpo_lora.py --topology=v5e:1x1
python launch/plan.py --config=configs/grpo_lora.py:model=deepseek_v2_lite --topology=v5e:4x4

The models are those of configs/adapted_models.py. It leaves runs/.../adapter, in peft's format.
"""

from ml_collections import ConfigDict, config_dict

from configs.adapted_models import start_from
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model="qwen2_5_1_5b", seed=0)
    on_cpu = arg.model == "smollm2"
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=30, prompts_per_step=4, group_size=8)
    )
    start_from(c, arg.model)
    c.data = dict(
        task="word_arithmetic",
        # A jsonl file in GSM8K's format replaces the task
        path=config_dict.placeholder(str),
        template="chat",
        num_held_out=64,
    )
    c.accuracy = "exact_answer"
    c.rewards = dict(exact_answer=1.0, correct_working=1.0)
    length = 48 if on_cpu else 512
    c.rollout = dict(max_prompt_length=256, max_completion_length=length, temperature=1.0, slots=32)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    # About ten times that of training every parameter
    c.optimizer = dict(learning_rate=2e-4, warmup_steps=2)
    c.micro_batches = 1 if on_cpu else 4
    c.save_every = 10
    if arg.model == "qwen3_0_6b":
        # Trained whole: smaller steps, and moments of half the size
        c.optimizer.update(learning_rate=2e-6, moment_dtype="bfloat16")
    if arg.model == "deepseek_v2_lite":
        # A group for each of sixteen chips
        c.update(prompts_per_step=16, micro_batches=1)
        c.rollout.slots = 128
    return c
