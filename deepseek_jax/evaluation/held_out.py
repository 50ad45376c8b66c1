"""How a policy answers questions that it was not trained on."""

import dataclasses

import numpy as np

from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.parallel.processes import from_first, say
from deepseek_jax.rollout import generate

TAIL = 16  # tokens that hold a <think> and a line break, be they bytes


def evaluate(
    config, params, tokenizer, prompts, examples, rewards, *, accuracy, samples=3, **sampling
):
    """Answer each prompt once, and score the answers.

    prompts: lists of ids. examples: the questions, as rewards.score wants them. rewards: rewards.Rewards;
    accuracy: the name of the part that says whether an answer is right. sampling: what rollout.generate
    takes. Returns a dict that JSON can say: scores, name -> [mean, low, high] with 95% intervals, of
    accuracy, reward, each part, completion_length in tokens and truncated; unscored, how many answers could
    not be scored, which the first three kinds leave out; and samples, the first few prompts and completions
    with their rewards, None where there is none. Raises RuntimeError if no answer could be scored.
    """
    rollout = generate(config, params, prompts, **sampling)
    texts = completion_texts(tokenizer, prompts, rollout)
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


def completion_texts(tokenizer, prompts, rollout):
    """The text of every completion of a rollout.Rollout of prompts, lists of ids, without special tokens.

    A <think> that its prompt ends in, as some chat templates open every answer, stands at its front: without
    it a completion that was cut off while it thought would pass for an answer, and none would be laid out as
    asked.
    """
    n = len(rollout.completion_ids) // len(prompts)
    opened = [_opened(tokenizer, ids) for ids in prompts for _ in range(n)]
    rows = zip(opened, rollout.completion_ids, rollout.completion_mask, strict=True)
    return [before + tokenizer.decode(ids[mask]) for before, ids, mask in rows]


def _opened(tokenizer, prompt_ids):
    """The <think> that a prompt ends in, with the white space behind it; else ""."""
    _, tag, space = tokenizer.decode(prompt_ids[-TAIL:]).rpartition("<think>")
    return tag + space if tag and not space.strip() else ""


def _share_or_number(values):
    """As bools if they are all 0 or 1: a share has an interval of its own."""
    values = np.asarray(values)
    return values.astype(bool) if np.isin(values, (0, 1)).all() else values
