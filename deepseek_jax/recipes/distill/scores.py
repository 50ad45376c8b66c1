"""Measure students and teacher on held-out questions, task by task.

Tests: tests/recipes/test_results.py.
"""

from typing import NamedTuple

import numpy as np

from deepseek_jax.evaluation.accuracy import score_interval
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.distill.settings import ScoreSettings
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.worlds.registry import open_rewards

# The page shows this many questions of each task, and this many answers to each
ON_PAGE, OF_QUESTION = 8, 8


class TaskAnswers(NamedTuple):
    """Answers to held-out questions, as JSON can hold them.

    Attributes:
        shares: Task -> the mean reward of each question's samples, in the order of the questions.
            If answers are right or wrong, it is the share of right samples.
        samples: Page.samples (reports.page) of each task's first questions.
    """

    shares: dict[str, list[float]]
    samples: list[dict]


def answer_tasks(sampling: ScoreSettings, tasks: dict, policy: Policy, seed: int) -> TaskAnswers:
    """Let a policy answer the questions of each task, and score its answers.

    Args:
        sampling: How answers are sampled.
        tasks: Name -> TransferTask. A task without questions is skipped.
        policy: The policy, with parameters.
        seed: The seed of the sampling.
    """
    shares, samples = {}, []
    for name, task in tasks.items():
        if not task.questions:
            continue
        examples = policy.with_prompts(task.questions)
        log = MeasuredLog()
        answers = policy.answer(examples, sampling, n=sampling.samples, seed=seed, log=log)
        repeated_examples = [example for example in examples for _ in range(sampling.samples)]
        with open_rewards({task.rule: 1.0}) as rewards:
            ids = answers.rollout.tokens()
            scores = rewards.score_together(repeated_examples, answers.texts, ids)
        if missing_verdicts := scores.without_verdict(task.rule):
            say(f"{name}: {missing_verdicts}")
        rewards_pi = scores.as_wrong(task.rule).astype(np.float64).reshape(len(examples), -1)
        shares[name] = rewards_pi.mean(1).tolist()
        samples += _groups(name, examples[:ON_PAGE], answers, rewards_pi)
    return TaskAnswers(shares, samples)


def _groups(task, examples, answers, rewards_pi):
    """Return Page.samples of the first questions of a task.

    Args:
        task: The name of the task.
        examples: These questions.
        answers: The answers to all questions.
        rewards_pi: float64[p i], the rewards of all answers.
    """
    lengths, group_size = answers.lengths(), rewards_pi.shape[1]
    return [
        {
            "task": task,
            "prompt": example["question"],
            "answer": example.get("answer"),
            "completions": [
                {
                    "text": answers.texts[p * group_size + i],
                    "total": rewards_pi[p, i],
                    "length": int(np.ravel(lengths)[p * group_size + i]),
                }
                for i in range(min(group_size, OF_QUESTION))
            ],
        }
        for p, example in enumerate(examples)
    ]


def first_answers(samples: dict[str, list]) -> list[dict]:
    """Return Page.pairs: each question with the first answer of every policy.

    Args:
        samples: Title of a policy -> its TaskAnswers.samples.
    """
    return [
        {
            "prompt": groups[0]["prompt"],
            "facts": {name: groups[0][name] for name in ("task", "answer")},
            "sides": [
                group["completions"][0] | {"title": title}
                for title, group in zip(samples, groups, strict=True)
            ],
        }
        for groups in zip(*samples.values(), strict=False)
    ]


def intervals(shares_by_task: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Return each task's mean share with its 95% interval over questions.

    Args:
        shares_by_task: TaskAnswers.shares.

    Returns:
        {task: (mean, low, high)}. With several tasks, "all" comes last, over the questions of all
        tasks.
    """
    shares_of_all: dict[str, list[float]] = {}
    if len(shares_by_task) > 1:
        shares_of_all["all"] = sum(shares_by_task.values(), [])
    return {
        name: score_interval(shares) for name, shares in (shares_by_task | shares_of_all).items()
    }


def say_shares(title: str, shares: dict[str, list[float]]):
    """Print a policy's mean share of each task.

    Args:
        title: The title of the policy.
        shares: TaskAnswers.shares.
    """
    share_texts = (f"{name} {mean:.1%}" for name, (mean, *_) in intervals(shares).items())
    say(f"{title} answers right: {', '.join(share_texts)}")
