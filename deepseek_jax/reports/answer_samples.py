"""Results of evaluation.evaluate as the page shows them: prompts before and after, and samples.

Tests: tests/recipes/sft/test_run.py.
"""

import dataclasses
from itertools import chain

from deepseek_jax.reports.page import Page


def with_answers(page: Page, measured: dict[str, dict]) -> Page:
    """Return the page with answers to held-out questions.

    Args:
        measured: "before" and "after", if they are there -> {task: result of evaluate_both}. The
            page puts the first way of answering side by side.
    """
    before, after = (measured.get(when, {}) for when in ("before", "after"))
    pairs = [
        _pairs(task, *(next(iter(measurement[task].values())) for measurement in (before, after)))
        for task in before
        if task in after
    ]
    groups = [
        _groups(when, task, answers)
        for when, tasks in measured.items()
        for task, answers in tasks.items()
    ]
    return dataclasses.replace(
        page,
        # The first question of each task, then the second question of each
        pairs=list(chain.from_iterable(zip(*pairs, strict=False))),
        samples=list(chain.from_iterable(groups)),
        notes=[*page.notes, *_unscored(measured)],
    )


def _pairs(task, before, after):
    """Build Page.pairs of two results of evaluate on the same prompts."""
    task_fact = {"task": task} if task else {}
    return [
        {
            "prompt": old["prompt"],
            "facts": task_fact | new["columns"],
            "sides": [
                _completion(old) | {"title": "before"},
                _completion(new) | {"title": "after"},
            ],
        }
        for old, new in zip(before["samples"], after["samples"], strict=False)
    ]


def _groups(when, task, answers):
    """Build Page.samples of evaluate's results; the kind is "sampled" or "greedy"."""
    return [
        {
            "stage": when,
            "kind": kind,
            "task": task,
            "prompt": sample["prompt"],
            "answer": sample["columns"].get("answer"),
            "completions": [_completion(sample)],
        }
        for kind, result in answers.items()
        for sample in result["samples"]
    ]


def _unscored(measured):
    """Write a sentence for each way of answering in which answers had no score."""
    return [
        f"{' '.join(filter(None, (when, task, kind)))}: {result['unscored']} answers had no score; they "
        "count as wrong, and no reward has them."
        for when, tasks in measured.items()
        for task, answers in tasks.items()
        for kind, result in answers.items()
        if result["unscored"]
    ]


def _completion(sample):
    completion = {"text": sample["completion"], "total": sample["reward"]}
    field_names = ("parts", "right", "unread", "truncated", "length", "messages")
    return completion | {name: sample[name] for name in field_names if name in sample}
