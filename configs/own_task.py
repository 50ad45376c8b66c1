"""GRPO of SmolLM2 on your own task: questions from a csv file, and rewards from a Python file.

python launch/train.py --config=configs/own_task.py

The csv file has column names of its own. configs/own/README.md explains it step by step.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import grpo_smollm2
from configs.common import parse_arg

OWN = Path(__file__).parent / "own"


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = grpo_smollm2.get_config(f"seed={arg.seed}")
    c.data.path = str(OWN / "questions.csv")
    c.data.columns = dict(question="prompt", answer="target")
    # Files in the folder of this one. A name with a dot needs such a block. The accuracy is the
    # reward with the larger weight
    rewards = {"own/rewards.py:right": 1.0, "own/rewards.py:brief": 0.2}
    c.rewards = ConfigDict(rewards, allow_dotted_keys=True)
    return c
