"""The training set of the published students: R1's right answers to questions of mathematics.

python launch/generate.py --config=configs/generate_r1_distill.py --config.init_from=DeepSeek-R1
    --config.data.path=QUESTIONS.jsonl --config.keep.decontaminate='("gsm8k/test.jsonl",)'

It follows arXiv:2501.12948, section 2.4 and appendix B.3.3. A line of QUESTIONS.jsonl is
{"question": "...", "answer": "... #### 72"}, or {"messages": [...]}.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="generate", seed=arg.seed, chunk_size=64))
    c.init_from = "DeepSeek-R1"
    c.model = models.deepseek_v3()
    # Processes that share one teacher. Their 64 chips of a v5p can hold its weights twice: as they
    # are read, and in the form for decoding
    c.teacher_processes = 16
    c.mesh = dict(fsdp=8, expert=8)
    c.data = dict(path="questions.jsonl", template="chat", opening="<think>\n")
    # R1's authors recommend these values and evaluate with them; there is no system prompt
    c.sampling = dict(
        samples_per_prompt=4,
        temperature=0.6,
        top_p=0.95,
        max_prompt_length=2048,
        max_completion_length=32_768,
        slots=256,
    )
    c.accuracy = "math_verify"
    c.rewards = dict(math_verify=1.0, language_consistency_en=0.0)
    # Runs of 10 words as published (appendix D.1)
    c.keep = dict(max_per_prompt=2, near_duplicates=0.9, shingle=5, ngram=10, decontaminate=())
    c.keep.at_least = dict(math_verify=1.0, language_consistency_en=0.95)
    return c
