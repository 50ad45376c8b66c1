"""Data from a teacher in miniature: right answers to puzzles, as a dataset for fine-tuning.

python launch/generate.py --config=configs/generate_small.py          # pre-trains the teacher first
python launch/generate.py --config=configs/generate_small.py:drafts   # drafts by multi-token prediction
python launch/generate.py --config=configs/generate_small.py:teacher=runs/r1_small/scenarios/params

The teacher is a tiny DeepSeek-V3 of the bilingual world. It rewrites the puzzles and answers them.
"""

from ml_collections import ConfigDict

from configs import models, r1_zero_small
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, teacher="", drafts=False)
    c = ConfigDict(dict(recipe="generate", seed=arg.seed, chunk_size=32))
    if arg.teacher:
        c.init_from = arg.teacher
    else:
        c.model = models.deepseek_v3_tiny(vocab_size=r1_zero_small.VOCAB_SIZE)
        c.base = r1_zero_small.get_config().base
        if arg.drafts:
            # A module that predicts one token further ahead drafts the answers
            c.model.num_nextn_predict_layers, c.base.mtp_weight = 1, 0.3
        c.base.corpus, c.base.num_steps = "bilingual_teaching", 700
        c.base.num_documents = 20_000
    c.data = dict(task="bilingual_puzzles", template="r1_zero", num_prompts=192, num_held_out=256)
    c.augment = dict(
        numbers=1,
        paraphrase=dict(en="{question}, or ", zh="{question}，改"),
        translate=dict(en="Say in Chinese: {question}", zh="用英文说：{question}"),
    )
    c.sampling = dict(
        samples_per_prompt=4,
        temperature=0.6,
        top_p=0.95,
        max_prompt_length=32,
        max_completion_length=64,
        slots=128,
        speculative=arg.drafts,
    )
    c.accuracy = "puzzle_answer"
    c.rewards = dict(puzzle_answer=1.0, think_answer_format=1.0, language_consistency=1.0)
    c.keep = dict(max_per_prompt=2, near_duplicates=0.9, shingle=3, decontaminate=("held_out",))
    c.keep.at_least = dict(puzzle_answer=1.0, think_answer_format=1.0, language_consistency=1.0)
    # A run of 10 units, as published, would be only two steps of a puzzle
    c.keep.ngram = 16
    return c
