"""Rewards of one's own, for configs/own_task.py: copy this file and change it."""

import re


def right(completion, example):
    """1 where the last number in the answer is the one in the column `target`; of our form."""
    numbers = re.findall(r"\d+", completion)
    return float(bool(numbers) and numbers[-1] == example["target"])


def brief(completions, completion_ids, log_metric, **columns):
    """1 for answers of up to 24 tokens; of TRL's form, which gets all completions of a step."""
    lengths = [len(ids) for ids in completion_ids]
    log_metric("longest", max(lengths))
    return [float(length <= 24) for length in lengths]


def shortest(completions, completion_ids, **columns):
    """1 for the shorter half of the completions that are scored together."""
    lengths = [len(ids) for ids in completion_ids]
    middle = sorted(lengths)[len(lengths) // 2]
    return [float(length < middle) for length in lengths]


# Its values depend on the other completions, so that it cannot be checked on each alone. Type
# checkers know no attributes of a function
shortest.whole_batch = True  # type: ignore[attr-defined]
