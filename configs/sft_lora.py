"""Fine-tuning of an adapter (LoRA, arXiv:2106.09685): 1.5B parameters on Colab's single v5e chip.

python launch/train.py --config=configs/sft_lora.py:model=smollm2                 # on a CPU
python launch/train.py --config=configs/sft_lora.py --config.init_from=FOLDER --config.data.path=MY.jsonl
python launch/plan.py --config=configs/sft_lora.py --topology=v5e:1x1
python launch/plan.py --config=configs/sft_lora.py:model=deepseek_v2_lite --topology=v5e:4x4

It is sft_smollm2.py with an adapter, for the models of adapted_models.py.
"""

from configs import sft_smollm2
from configs.adapted_models import start_from
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model="qwen2_5_1_5b", seed=0)
    c = sft_smollm2.get_config(f"seed={arg.seed}")
    start_from(c, arg.model)
    # Ten times the rate for training every parameter
    c.optimizer.learning_rate = 5e-4
    if arg.model == "smollm2":
        return c
    c.batch_size, c.sequence_length, c.micro_batches = 8, 2048, 4
    c.answers.max_completion_length = 512
    # A model soon knows a few thousand conversations by heart. The loss of a checkpoint is the loss
    # that was measured last
    c.checkpoints, c.eval_every = dict(best="held_out_loss"), 5
    if arg.model == "r1_distill_qwen_7b":
        c.micro_batches, c.answers.slots = 8, 8
    if arg.model == "qwen3_0_6b":
        # All parameters are trained: a smaller rate, and moments of half the size
        c.optimizer.update(learning_rate=2e-5, moment_dtype="bfloat16")
    if arg.model == "deepseek_v2_lite":
        # One row for each of sixteen chips, and one reader for each of their four hosts
        c.batch_size, c.micro_batches, c.answers.slots = 16, 1, 64
        c.data.readers = 4
    return c
