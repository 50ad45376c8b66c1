"""Scores of each task, from the answers to its problems, and the comparison of two runs.

A problem with its answers is a dict. task is the group that it counts in. question and gold
identify it. correct (bool), lengths (int, in tokens) and truncated (bool) are lists with one value
per sample, and for conversations so is each of CONVERSED. agreed says whether the most frequent
answer is right, or is None if answers cannot be counted.
"""

import numpy as np

from deepseek_jax.evaluation.accuracy import (
    ADDED_OF_PASS_AT_K,
    LENGTHS,
    length_interval,
    mean_interval,
    share_interval,
)
from deepseek_jax.evaluation.compare import Comparison, compare
from deepseek_jax.evaluation.pass_at_k import pass_at_k

ALL = "all"
# Counts in rollout.tool_use.Conversation; get_reward is None if the conversation has no such reward
CONVERSED = ("turns", "tool_calls", "tool_errors", "truncated_turns", "get_reward")
# How the names of scores within 0..1 begin
SHARES = ("pass@", "cons@", "truncated")


def per_problem(problems: list[dict]) -> dict[str, np.ndarray]:
    """Return each score of each problem: name -> float64[p], with n samples per problem.

    The scores are pass@1, pass@4, pass@16, ... to pass@n, and cons@n. length is the mean length of
    the samples in tokens, and truncated the share of truncated samples. For conversations there are
    the means of CONVERSED. A get_reward that failed counts as 0, and one that no conversation has
    is left out.
    """
    correct = [problem["correct"] for problem in problems]
    n = len(correct[0])
    scores = {f"pass@{k}": pass_at_k(correct, k) for k in _numbers(n)}
    agreements = [problem["agreed"] for problem in problems]
    # With one sample cons@1 would repeat pass@1
    if None not in agreements and n > 1:
        scores[f"cons@{n}"] = np.array(agreements, np.float64)
    scores["length"] = np.mean([problem["lengths"] for problem in problems], axis=1)
    scores["truncated"] = np.mean([problem["truncated"] for problem in problems], axis=1)
    for name in CONVERSED:
        values = [problem.get(name, [None]) for problem in problems]
        if any(value is not None for problem_values in values for value in problem_values):
            scores[name] = np.mean(
                [[value or 0 for value in problem_values] for problem_values in values], axis=1
            )
    return scores


def task_scores(problems: list[dict]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return each task's scores with 95% intervals over problems: {task: {name: interval}}.

    Several tasks add ALL, with the problems of all tasks.

    Raises:
        ValueError: For a task of a single problem.
    """
    return {
        task: {name: _interval(name, values) for name, values in per_problem(group).items()}
        for task, group in _groups(problems).items()
    }


def compared_tasks(ours: list[dict], theirs: list[dict]) -> dict[str, dict[str, Comparison]]:
    """Compare two runs on each pass@k and cons@k that both have: task -> {name: Comparison}.

    Raises:
        ValueError: Unless both runs answered the same problems.
    """
    theirs = in_order(ours, theirs)
    comparisons = {}
    for task, group in _groups(ours).items():
        keys = set(map(_key, group))
        their_scores = per_problem([problem for problem in theirs if _key(problem) in keys])
        comparisons[task] = {
            name: compare(values, their_scores[name])
            for name, values in per_problem(group).items()
            if "@" in name and name in their_scores
        }
    return comparisons


def in_order(ours: list[dict], theirs: list[dict]) -> list[dict]:
    """Return their problems, dicts with task, question and gold, in the order of ours.

    Raises:
        ValueError: If one run has a problem that the other lacks; the message names one.
    """
    problem_by_key = {_key(problem): problem for problem in theirs}
    keys = list(map(_key, ours))
    missing_keys, extra_keys = set(keys) - set(problem_by_key), set(problem_by_key) - set(keys)
    if missing_keys or extra_keys:
        example = sorted(missing_keys or extra_keys)[0]
        raise ValueError(
            f"not the same problems: {len(missing_keys)} of ours and {len(extra_keys)} of theirs have no "
            f"partner, such as {example[1]!r} of {example[0]}; evaluate both runs on the same data and "
            "num_problems"
        )
    return [problem_by_key[key] for key in keys]


def _numbers(n):
    """Return 1, 4, 16, ... and n."""
    return sorted({4**i for i in range(n.bit_length()) if 4**i <= n} | {n})


def _interval(name, values):
    if name.startswith("pass@") and name != "pass@1":
        return share_interval(values, ADDED_OF_PASS_AT_K)
    if name in LENGTHS:
        return length_interval(values)
    return (share_interval if name.startswith(SHARES) else mean_interval)(values)


def _groups(problems):
    groups: dict[str, list[dict]] = {}
    for problem in problems:
        groups.setdefault(problem["task"], []).append(problem)
    return groups | ({ALL: problems} if len(groups) > 1 else {})


def _key(problem):
    return problem["task"], problem["question"], problem["gold"]
