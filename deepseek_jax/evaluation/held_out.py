"""How a policy answers questions that it was not trained on."""

import dataclasses

import numpy as np

from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.parallel.processes import from_first, say
from deepseek_jax.rollout.policy import AnswerOptions


def evaluate_both(policy, examples, rewards, options, **more):
    """`evaluate`, sampled as options say and greedily: a dict of both."""
    sizes = dict(max_completion_length=options.max_completion_length, slots=options.slots)
    greedy = AnswerOptions(temperature=0.0, **sizes)
    return {
        way: evaluate(policy, examples, rewards, how, **more)
        for way, how in (("sampled", options), ("greedy", greedy))
    }


def evaluate(policy, examples, rewards, options, *, accuracy, seed=0, samples=3):
    """Answer each example once, and score the answers.

    policy: rollout.Policy. examples: with their prompt_ids, and what rewards.score wants. rewards:
    rewards.Rewards; accuracy: the name of the part that says whether an answer is right. options:
    rollout.AnswerOptions. Returns a dict that JSON can say: scores, name -> [mean, low, high] with 95%
    intervals, of accuracy, reward, each part, completion_length in tokens and truncated; unscored, how many
    answers could not be scored, which the first three kinds leave out; and samples, the first few prompts
    and completions with their rewards, None where there is none. Raises RuntimeError if no answer could be
    scored.
    """
    texts, rollout, _ = policy.answer(examples, options, seed=seed)
    scores = score(rewards, examples, texts)
    if scores.errors:
        say(
            f"{scores.errors} of {len(texts)} held-out answers could not be scored and are left out: "
            f"{''.join(scores.messages[:1])}"
        )
    scored = ~np.isnan(scores.total)
    values = {
        "accuracy": scores.parts[accuracy][scored],
        "reward": scores.total[scored],
        **{name: part[scored] for name, part in scores.parts.items() if name != accuracy},
        "completion_length": rollout.completion_mask.sum(1),
        "truncated": rollout.truncated,
    }
    shown = zip(examples, texts, scores.total.tolist(), strict=True)
    return {
        "scores": summarise({name: _share_or_number(v) for name, v in values.items()}),
        "unscored": scores.errors,
        "samples": [
            {
                "prompt": example["question"],
                "completion": text,
                "reward": None if np.isnan(reward) else reward,
            }
            for example, text, reward in list(shown)[:samples]
        ],
    }


def score(rewards, examples, texts):
    """rewards.score(examples, texts) as process 0 has it: a reward that runs out of time may do so on one
    process alone, and the others must not learn from another number.

    Raises RuntimeError, on every process or on none, if no completion could be scored.
    """
    scores = rewards.score(examples, texts)
    total, parts, errors = from_first((scores.total, scores.parts, np.int32(scores.errors)))
    scores = dataclasses.replace(scores, total=total, parts=parts, errors=int(errors))
    scores.require_one()
    return scores


def _share_or_number(values):
    """As bools if they are all 0 or 1: a share has an interval of its own."""
    values = np.asarray(values)
    return values.astype(bool) if np.isin(values, (0, 1)).all() else values
