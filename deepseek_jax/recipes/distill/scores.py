"""How students and teacher answer held-out questions, and what a pair of students tells when compared."""

import numpy as np

from deepseek_jax.evaluation.bootstrap import share_interval
from deepseek_jax.evaluation.held_out import completion_texts
from deepseek_jax.recipes.distill.tasks import prompted
from deepseek_jax.recipes.start import ending_turns
from deepseek_jax.rollout import generate


def answer_tasks(settings, tasks, policy, params, tokenizer):
    """task -> [mean reward of the samples] of each of its questions, in order: what JSON can say. It is the
    share of right ones where answers are right or wrong.

    settings: DistillSettings. tasks: name -> TransferTask; one without questions is left out.
    """
    sampling, found = settings.evaluation, {}
    policy = ending_turns(policy, tokenizer, settings.template)
    for name, task in tasks.items():
        if not task.questions:
            continue
        asked = prompted(task.questions, tokenizer, settings.template)
        prompts = [example["prompt_ids"] for example in asked]
        rollout = generate(
            policy,
            params,
            prompts,
            n=sampling.samples,
            max_completion_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=settings.seed,
            slots=sampling.slots,
        )
        texts = completion_texts(tokenizer, prompts, rollout)
        repeated = [example for example in asked for _ in range(sampling.samples)]
        right = [task.reward(text, e) for text, e in zip(texts, repeated, strict=True)]
        found[name] = np.reshape(right, (len(asked), -1)).mean(1).tolist()
    return found


def intervals(found):
    """{task: (mean, low, high), ..., "all": ...} of answer_tasks' shares, at 95% over questions."""
    everything = {"all": sum(found.values(), [])} if len(found) > 1 else {}
    return {name: share_interval(shares) for name, shares in (found | everything).items()}
