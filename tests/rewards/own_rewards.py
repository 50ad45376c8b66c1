"""Rewards as a user writes them, for tests/rewards/test_function.py: right ones, and each mistake."""

import json
import os
from pathlib import Path

CALLS = []


def brief(completion, example):
    return float(len(completion) <= 4)


def right(completion, example):
    return None if example.get("unsure") else float(completion == example["answer"])


def listed(prompts, completions, completion_ids, target, log_extra=None, log_metric=None, **kwargs):
    """TRL's form: chats or texts, a column, both logs, and None where it does not score."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    asked = [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
    log_extra("asked", asked)
    log_metric("tokens", sum(map(len, completion_ids)) / len(texts))
    own = sorted(set(kwargs) - {"trainer_state", "environments"})
    CALLS.append(dict(prompts=prompts, completions=completions, own=own))
    scores = [len(t) / 10 + len(ids) for t, ids in zip(texts, completion_ids, strict=True)]
    return [None if to == "skip" else score for score, to in zip(scores, target, strict=True)]


def a_text(completion, example):
    return "good"


def too_few(completions, **kwargs):
    return [1.0]


def texts(completions, **kwargs):
    return ["good" for _ in completions]


async def waits(completions, **kwargs):
    return [0.0 for _ in completions]


def of_trls_trainer(completions, trainer_state, **kwargs):
    return [0.0 for _ in completions]


def of_nobody(completion):
    return 0.0


def raises(completion, example):
    raise KeyError("oh")


def leaves(completion, example):
    os._exit(3)


def raises_on_nine(completion, example):
    return 1 / (len(completion) - 9)


def notes_itself(completion, example):
    Path(example["file"]).write_text(json.dumps([os.getpid(), completion]))
    return 0.0
