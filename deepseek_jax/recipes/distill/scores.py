"""Measure students and teacher on held-out questions, task by task."""

import numpy as np

from deepseek_jax.evaluation.accuracy import score_interval
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.distill.settings import ScoreSettings
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.worlds.registry import open_rewards


def answer_tasks(sampling: ScoreSettings, tasks: dict, policy: Policy, seed: int):
    """task -> [mean reward of a question's samples], one number a question, in order, for JSON. Where answers
    are right or wrong, it is the share of right samples.

    tasks: name -> TransferTask; skips one without questions.
    """
    found = {}
    for name, task in tasks.items():
        if not task.questions:
            continue
        asked = policy.with_prompts(task.questions)
        log = MeasuredLog()
        answers = policy.answer(asked, sampling, n=sampling.samples, seed=seed, log=log)
        repeated = [example for example in asked for _ in range(sampling.samples)]
        with open_rewards({task.rule: 1.0}) as rewards:
            ids = answers.rollout.tokens()
            scores = rewards.score_together(repeated, answers.texts, ids)
        if missing := scores.without_verdict(task.rule):
            say(f"{name}: {missing}")
        right = scores.as_wrong(task.rule).astype(np.float64).reshape(len(asked), -1)
        found[name] = right.mean(1).tolist()
    return found


def intervals(found: dict):
    """{task: (mean, low, high), ..., "all": ...} of answer_tasks' means: 95% intervals over questions."""
    everything = {"all": sum(found.values(), [])} if len(found) > 1 else {}
    return {name: score_interval(shares) for name, shares in (found | everything).items()}


def say_shares(title: str, found: dict):
    """Print the means of answer_tasks."""
    shown = (f"{name} {mean:.1%}" for name, (mean, *_) in intervals(found).items())
    say(f"{title} answers right: {', '.join(shown)}")
