"""How students and teacher answer held-out questions, and what a pair of students tells when compared."""

import numpy as np

from deepseek_jax.evaluation.bootstrap import share_interval
from deepseek_jax.worlds.registry import open_rewards


def answer_tasks(sampling, tasks, policy, seed):
    """task -> [mean reward of the samples] of each of its questions, in order: what JSON can say. It is the
    share of right ones where answers are right or wrong.

    sampling: ScoreSettings. tasks: name -> TransferTask; one without questions is left out. policy:
    rollout.Policy.
    """
    found = {}
    for name, task in tasks.items():
        if not task.questions:
            continue
        asked = policy.with_prompts(task.questions)
        texts = policy.answer(asked, sampling, n=sampling.samples, seed=seed).texts
        repeated = [example for example in asked for _ in range(sampling.samples)]
        with open_rewards({task.rule: 1.0}) as rewards:
            right = rewards.score(repeated, texts).parts[task.rule]
        found[name] = right.astype(np.float64).reshape(len(asked), -1).mean(1).tolist()
    return found


def intervals(found):
    """{task: (mean, low, high), ..., "all": ...} of answer_tasks' shares, at 95% over questions."""
    everything = {"all": sum(found.values(), [])} if len(found) > 1 else {}
    return {name: share_interval(shares) for name, shares in (found | everything).items()}
