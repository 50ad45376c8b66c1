"""Fine-tuning by adapters (LoRA, arXiv:2106.09685): a model of 1.5B parameters on Colab's one v5e chip.

python launch/train.py --config=configs/sft_lora.py:model=smollm2                 # on a CPU
python launch/train.py --config=configs/sft_lora.py --config.init_from=FOLDER --config.data.path=MY.jsonl
python launch/plan.py --config=configs/sft_lora.py --topology=v5e:1x1

The models are those of configs/adapted_models.py. It leaves runs/.../adapter, in peft's format.
"""

from ml_collections import ConfigDict, config_dict

from configs.adapted_models import start_from
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model="qwen2_5_1_5b", seed=0)
    on_cpu = arg.model == "smollm2"
    c = ConfigDict(
        dict(recipe="sft", seed=arg.seed, num_steps=30, batch_size=2, sequence_length=256)
    )
    start_from(c, arg.model)
    c.data = dict(
        task="word_arithmetic",
        # A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}
        path=config_dict.placeholder(str),
        template="chat",
        num_held_out=64,
    )
    c.accuracy = "exact_answer"
    c.rewards = dict(exact_answer=1.0, correct_working=1.0)
    length = 48 if on_cpu else 512
    c.answers = dict(num_prompts=64, max_completion_length=length, temperature=1.0, slots=32)
    c.optimizer = dict(learning_rate=5e-4, schedule="cosine", warmup_steps=2)
    c.eval_every, c.save_every = 10, 10
    if not on_cpu:
        c.update(batch_size=8, sequence_length=2048, micro_batches=4)
    if arg.model == "qwen3_0_6b":
        # Trained whole: smaller steps, and moments of half the size
        c.optimizer.update(learning_rate=2e-5, moment_dtype="bfloat16")
    if arg.model == "deepseek_v2_lite":
        c.update(batch_size=16, micro_batches=1)
        c.answers.slots = 64
    return c
