"""What is kept of a measured policy's completions for a reader: some prompts, each with its whole group."""

import numpy as np

from deepseek_jax.losses.grpo import group_advantages
from deepseek_jax.rewards.language import LANGUAGES, chain_of_thought, language_share
from deepseek_jax.worlds.registry import open_rewards

LAYOUT_REWARDS = ("think_answer_format", "language_consistency")


def layout_rewards(examples):
    """The rewards of how a completion is laid out; its language only where every example says its own."""
    says_language = all("language" in example for example in examples)
    return LAYOUT_REWARDS if says_language else LAYOUT_REWARDS[:1]


def paid_rewards(questions, examples):
    """What samples are paid, whatever the stage was trained on, so that stages can be compared: the rule
    first, which says whether a completion is right, the world's other scores, and the layout.
    """
    rule = [] if questions.rule is None else [questions.rule]
    others = [score.reward for score in questions.scores.values()]
    return dict.fromkeys([*rule, *others, *layout_rewards(examples)], 1.0)


def sample_groups(questions, examples, groups, lengths):
    """Dicts that JSON can say: kind, language, prompt, answer and completions (see html_report.report_page).

    questions: worlds.world.Questions. groups[i]: the completions (str) of examples[i], as many of each;
    lengths: int[p i], their tokens.
    """
    if not examples:
        return []
    weights = paid_rewards(questions, examples)
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
            "right": questions.rule is not None and bool(scores.parts[questions.rule][i] == 1),
            "languages": _languages(text),
            "length": int(np.ravel(lengths)[i]),
        }
        for i, text in enumerate(texts)
    ]
    return [
        {key: example.get(key, "") for key in ("kind", "language", "answer")}
        | {"prompt": example["question"], "completions": completions[i * size : (i + 1) * size]}
        for i, example in enumerate(examples)
    ]


def _languages(text):
    thought = chain_of_thought(text)
    return {language: _rounded(language_share(thought, language)) for language in LANGUAGES}


def _rounded(number):
    """Short in a file."""
    return round(float(number), 3)
