"""R1 in its stages on your own questions: Qwen2.5-Math-1.5B on one host of eight v5e chips.

python launch/train.py --config=configs/r1_own.py --config.data.reasoning=gsm8k/train.jsonl
python launch/plan.py --config=configs/r1_own.py --topology=v5e:2x4       # does it fit?

It is r1_small.py without general questions, and so without a judge and reward models. To start from
another checkpoint, set config.init_from to it and config.model to its sizes. It must write the
layout of the template now and then, because only such answers are accepted as traces.
"""

from configs import models, r1_small
from configs.common import parse_arg

# Tokens of a completion
LENGTH = 1024


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = r1_small.get_config(f"seed={arg.seed}")
    for name in ("world", "base", "judge", "judged", "helpfulness_model", "safety_model"):
        del c[name]
    c.init_from, c.mesh = "/checkpoints/Qwen2.5-Math-1.5B", dict(fsdp=8)
    c.model = models.qwen2_5_math_1_5b()
    c.data = dict(reasoning="/data/questions.jsonl", rule="math_verify", template="r1_zero")
    del c.scenarios["general"]
    for stage in (c.zero, c.reasoning, c.scenarios):
        stage.accuracy, stage.rewards = "math_verify", dict(math_verify=1.0)
        stage.rewards.think_answer_format = 1.0
        stage.rollout.update(max_prompt_length=512, max_completion_length=LENGTH)
        stage.micro_batches, stage.save_every = 4, 20
        stage.optimizer.learning_rate = 1e-6
    for stage in (c.cold_start, c.sft):
        stage.update(dict(sequence_length=2048, micro_batches=2, data=dict(num_puzzles=2000)))
        stage.optimizer.learning_rate = 1e-5
    for stage in (c.traces, c.rejection):
        stage.max_completion_length = LENGTH
    c.evaluation.update(samples=4, max_completion_length=LENGTH)
    return c
