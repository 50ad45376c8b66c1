"""R1-Zero as published: DeepSeek-V3-Base, reinforced by rules alone (arXiv:2501.12948, section 2).

python launch/train.py --config=configs/r1_zero.py --distributed

config.init_from and config.data.path are to be yours: V3-Base in a Hugging Face folder, and questions with
answers in GSM8K's format.

A step here is one rollout: 512 questions of 16 completions, cut into 16 updates of 512 completions, which
the paper counts as steps; 650 of them make its 10,400, the reference's 400 are 25, and its step 8,200, from
which on completions may have 65,536 tokens, is the 512th. What is not published for R1-Zero is ours:
clip_eps, which is that of R1's first reinforcement (section 3.2.1), Adam's numbers, max_prompt_length and
the mesh.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="grpo", seed=arg.seed, num_steps=650, group_size=16))
    c.prompts_per_step, c.minibatches, c.epochs = 512, 16, 1
    c.init_from = "/checkpoints/DeepSeek-V3-Base"
    c.model = dict(dtype="bfloat16", scan_layers=True, remat="full")
    c.mesh = dict(data=1, expert=32, tensor=-1)  # an update's 32 questions stay whole: 32 parts
    c.data = dict(path="/data/r1_zero.jsonl", template="r1_zero", num_held_out=512)
    c.accuracy = "math_verify"
    c.rewards = dict(math_verify=1.0, think_answer_format=1.0)
    c.rollout = dict(max_prompt_length=2048, temperature=1.0, slots=2048)
    c.rollout.max_completion_length = ((0, 32_768), (512, 65_536))
    c.loss = dict(loss_type="grpo", clip_eps=10.0, kl_coef=0.001)
    c.reference_every = 25
    c.optimizer = dict(learning_rate=3e-6, weight_decay=0.0)
    c.save_every = 5
    return c
