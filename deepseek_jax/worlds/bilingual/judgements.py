"""Training conversations of a judge, which compare two answers of the bilingual world."""

import numpy as np

from deepseek_jax.rewards.judge import judge_question
from deepseek_jax.worlds.bilingual.puzzles import tagged
from deepseek_jax.worlds.bilingual.request_rewards import LEVELS


def judge_conversations(examples: list, seed: int):
    """Write conversations from the bilingual world's "preferences".

    They have the form of data.messages.parse_conversation. Each asks rewards.judge.judge_question
    about a pair, in random order. The answer reasons with the helpfulness of both, in thirds, and
    gives the verdict: "<think>1 = 3, 2 = 1</think><answer>1</answer>".
    """
    rng, conversations = np.random.default_rng(seed), []
    for example in examples:
        answers = [(example[k], example[f"{k}_helpfulness"]) for k in ("chosen", "rejected")]
        # Position of the chosen answer
        best = int(rng.integers(2))
        (first, grade1), (second, grade2) = answers if best == 0 else answers[::-1]
        grades = f"1 = {round(LEVELS * grade1)}, 2 = {round(LEVELS * grade2)}"
        question = judge_question(example["question"], first, second)
        judgement = tagged(grades, str(best + 1))
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": judgement},
        ]
        conversations.append({"messages": messages, "weight": 1.0})
    return conversations
