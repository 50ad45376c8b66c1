"""R1-Zero as published: DeepSeek-V3-Base, trained by GRPO with rules as the only rewards.

python launch/train.py --config=configs/r1_zero.py
python launch/plan.py --config=configs/r1_zero.py --topology=v5p:8x8x16       # does it fit?

The numbers are from arXiv:2501.12948, section 2. Set config.init_from to V3-Base as a Hugging Face
folder, and config.data.path to questions with answers in GSM8K's format.

A step here is one rollout: 512 questions with 16 completions each, split into 16 updates of 512
completions. The paper counts these updates as steps. Its 10,400 steps are 650 here, and its 400
steps between new references are 25. From its step 8,200 on, a completion may have 65,536 tokens:
that is step 512 here.

Some values are not published for R1-Zero, and are ours: clip_eps (R1's value for its first
reinforcement, section 3.2.1), Adam's numbers, max_prompt_length and the mesh.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="grpo", seed=arg.seed, num_steps=650, group_size=16))
    c.prompts_per_step, c.minibatches, c.epochs = 512, 16, 1
    c.init_from = "/checkpoints/DeepSeek-V3-Base"
    # Room for a quarter more than a device's balanced share of tokens, as in configs/pretrain_v3.py
    c.model = models.deepseek_v3() | dict(expert_buffer=1.25, remat="attention")
    # An update is 512 rows of one completion, each on eight chips, in four micro-batches
    c.mesh = dict(data=1, fsdp=4, expert=32, context=8)
    c.micro_batches = 4
    c.data = dict(path="/data/r1_zero.jsonl", template="r1_zero", num_held_out=512)
    c.accuracy = "math_verify"
    c.rewards = dict(math_verify=1.0, think_answer_format=1.0)
    # A step has 8,192 completions. If all decode at once, a token costs half as much as with 2,048
    # at once
    c.rollout = dict(max_prompt_length=2048, temperature=1.0, slots=8192)
    c.rollout.max_completion_length = ((0, 32_768), (512, 65_536))
    # Section 3.2.1: a lower clip_eps cuts off the gradients of many tokens, a higher one may be unstable
    c.loss = dict(loss_type="grpo", clip_eps=10.0, kl_coef=0.001, lower_bound=False)
    c.reference_every = 25
    c.optimizer = dict(learning_rate=3e-6, weight_decay=0.0)
    c.save_every = 5
    # One whole group of each step, to read next to the curves
    c.kept_groups = 1
    # A step has 8,192 completions and takes hours. A fault in all of them is no accident, and soon
    # ends the run
    c.degenerate = dict(equal_rewards=2, truncated=2, empty=2)
    c.faults = dict(idle_lines=2)
    return c
