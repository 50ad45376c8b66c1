"""How a policy answers questions that it was not trained on."""

import numpy as np

from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.rollout import generate


def evaluate(
    config, params, tokenizer, prompts, examples, rewards, *, accuracy, samples=3, **sampling
):
    """Answer each prompt once, and score the answers.

    prompts: lists of ids. examples: the questions, as rewards.score wants them. rewards: rewards.Rewards;
    accuracy: the name of the part that says whether an answer is right. sampling: what rollout.generate
    takes. Returns a dict that JSON can say: scores, name -> [mean, low, high] with 95% intervals, of
    accuracy, reward, each part, completion_length in tokens and truncated; and samples, the first few
    prompts and completions with their rewards. Raises RuntimeError if an answer could not be scored.
    """
    rollout = generate(config, params, prompts, **sampling)
    texts = completion_texts(tokenizer, rollout)
    scores = rewards.score(examples, texts)
    if scores.errors:
        raise RuntimeError(
            f"{scores.errors} held-out answers could not be scored: {scores.messages[0]}"
        )
    values = {
        "accuracy": scores.parts[accuracy],
        "reward": scores.total,
        **{name: part for name, part in scores.parts.items() if name != accuracy},
        "completion_length": rollout.completion_mask.sum(1),
        "truncated": rollout.truncated,
    }
    shown = zip(examples, texts, scores.total.tolist(), strict=True)
    return {
        "scores": summarise({name: _share_or_number(v) for name, v in values.items()}),
        "samples": [
            {"prompt": example["question"], "completion": text, "reward": reward}
            for example, text, reward in list(shown)[:samples]
        ],
    }


def completion_texts(tokenizer, rollout):
    """The text of every completion of a rollout.Rollout, without special tokens."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [tokenizer.decode(ids[mask]) for ids, mask in rows]


def _share_or_number(values):
    """As bools if they are all 0 or 1: a share has an interval of its own."""
    values = np.asarray(values)
    return values.astype(bool) if np.isin(values, (0, 1)).all() else values
