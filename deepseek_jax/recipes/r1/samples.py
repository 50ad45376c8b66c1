"""What is kept of a measured policy's completions for a reader: some prompts, each with its whole group."""

import numpy as np

from deepseek_jax.losses.grpo import group_advantages
from deepseek_jax.rewards.language import LANGUAGES, chain_of_thought, language_share
from deepseek_jax.worlds.registry import open_rewards

# What is paid is the same for every stage, whatever the stage was trained on: rewards can be compared.
# The first says whether a completion is right: whether it earns all that there is.
PUZZLE_REWARDS = dict(puzzle_answer=1.0, think_answer_format=1.0, language_consistency=1.0)
REQUEST_REWARDS = dict(
    helpfulness=1.0, harmless=1.0, think_answer_format=1.0, language_consistency=1.0
)


def sample_groups(examples, groups, lengths, weights):
    """Dicts that JSON can say: kind, language, prompt, answer and completions (see html_report.report_page).

    groups[i]: the completions (str) of examples[i], as many of each; lengths: int[p i], their tokens.
    weights: of Rewards, by which they are paid.
    """
    size = len(groups[0])
    texts = [text for group in groups for text in group]
    with open_rewards(weights) as rewards:
        scores = rewards.score([example for example in examples for _ in range(size)], texts)
    advantages = np.zeros(len(texts))  # nothing to compare a completion with
    if size > 1:
        advantages = np.asarray(group_advantages(scores.total, group_size=size))
    completions = [
        {
            "text": text,
            "total": _rounded(scores.total[i]),
            "parts": {name: _rounded(part[i]) for name, part in scores.parts.items()},
            "advantage": _rounded(advantages[i]),
            "right": bool(scores.parts[next(iter(weights))][i] == 1),
            "languages": _languages(text),
            "length": int(np.ravel(lengths)[i]),
        }
        for i, text in enumerate(texts)
    ]
    return [
        {key: example[key] for key in ("kind", "language", "answer")}
        | {"prompt": example["question"], "completions": completions[i * size : (i + 1) * size]}
        for i, example in enumerate(examples)
    ]


def _languages(text):
    thought = chain_of_thought(text)
    return {language: _rounded(language_share(thought, language)) for language in LANGUAGES}


def _rounded(number):
    """Short in a file."""
    return round(float(number), 3)
