"""Scores of each task from the answers to its problems, and the comparison of two runs.

A problem with its answers is a dict: task, the group that it counts in; question and gold; one value per
sample in correct, list of bool, lengths, list of int in tokens, and truncated, list of bool, and of
conversations in each of CONVERSED; agreed, whether the most frequent answer is right, None where answers
cannot be counted.
"""

import numpy as np

from deepseek_jax.evaluation.accuracy import (
    ADDED_OF_PASS_AT_K,
    LENGTHS,
    length_interval,
    mean_interval,
    share_interval,
)
from deepseek_jax.evaluation.compare import compare
from deepseek_jax.evaluation.pass_at_k import pass_at_k

ALL = "all"
# Counts of rollout.tool_use.Conversation; get_reward is None where there is none
CONVERSED = ("turns", "tool_calls", "tool_errors", "truncated_turns", "get_reward")
# Beginnings of the names of scores within 0..1
SHARES = ("pass@", "cons@", "truncated")


def per_problem(problems: list):
    """name -> float64[p], of n samples per problem: pass@1, pass@4, pass@16, ... to pass@n, and cons@n.

    length: the samples' mean length in tokens. truncated: the share of truncated samples. Of conversations
    the means of CONVERSED; a get_reward that failed counts as 0, and one that no conversation has is left
    out.
    """
    correct = [problem["correct"] for problem in problems]
    n = len(correct[0])
    scores = {f"pass@{k}": pass_at_k(correct, k) for k in _numbers(n)}
    agreed = [problem["agreed"] for problem in problems]
    # The majority of one sample is the sample: cons@1 would repeat pass@1
    if None not in agreed and n > 1:
        scores[f"cons@{n}"] = np.array(agreed, np.float64)
    scores["length"] = np.mean([problem["lengths"] for problem in problems], axis=1)
    scores["truncated"] = np.mean([problem["truncated"] for problem in problems], axis=1)
    for name in CONVERSED:
        values = [problem.get(name, [None]) for problem in problems]
        if any(value is not None for of in values for value in of):
            scores[name] = np.mean([[value or 0 for value in of] for of in values], axis=1)
    return scores


def task_scores(problems: list):
    """task -> {name: (mean, low, high)}, with 95% intervals over problems; several tasks add ALL.

    Raises ValueError for a task of a single problem.
    """
    return {
        task: {name: _interval(name, values) for name, values in per_problem(group).items()}
        for task, group in _groups(problems).items()
    }


def compared_tasks(ours: list, theirs: list):
    """task -> {name: Comparison} of two runs, for each pass@k and cons@k that both have.

    Raises ValueError unless both runs answered the same problems.
    """
    theirs = in_order(ours, theirs)
    compared = {}
    for task, group in _groups(ours).items():
        keys = set(map(_key, group))
        others = per_problem([problem for problem in theirs if _key(problem) in keys])
        compared[task] = {
            name: compare(values, others[name])
            for name, values in per_problem(group).items()
            if "@" in name and name in others
        }
    return compared


def in_order(ours: list, theirs: list):
    """theirs in the order of ours: dicts with task, question and gold.

    Raises ValueError, with an example, if one has a problem that the other lacks.
    """
    found = {_key(problem): problem for problem in theirs}
    wanted = list(map(_key, ours))
    missing, more = set(wanted) - set(found), set(found) - set(wanted)
    if missing or more:
        example = sorted(missing or more)[0]
        raise ValueError(
            f"not the same problems: {len(missing)} of ours and {len(more)} of theirs have no partner, such "
            f"as {example[1]!r} of {example[0]}; evaluate both runs on the same data and num_problems"
        )
    return [found[key] for key in wanted]


def _numbers(n):
    """1, 4, 16, ... and n."""
    return sorted({4**i for i in range(n.bit_length()) if 4**i <= n} | {n})


def _interval(name, values):
    if name.startswith("pass@") and name != "pass@1":
        return share_interval(values, ADDED_OF_PASS_AT_K)
    if name in LENGTHS:
        return length_interval(values)
    return (share_interval if name.startswith(SHARES) else mean_interval)(values)


def _groups(problems):
    groups = {}
    for problem in problems:
        groups.setdefault(problem["task"], []).append(problem)
    return groups | ({ALL: problems} if len(groups) > 1 else {})


def _key(problem):
    return problem["task"], problem["question"], problem["gold"]
