"""Samples of a measured policy for report.html: some prompts, each with all its completions."""

from itertools import chain

import numpy as np

from deepseek_jax.data.texts import picked
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.rewards.language import LANGUAGES, chain_of_thought, language_share
from deepseek_jax.worlds.registry import open_rewards
from deepseek_jax.worlds.world import Questions

LAYOUT_REWARDS = ("think_answer_format", "language_consistency")


def layout_rewards(examples: list[dict]) -> tuple[str, ...]:
    """Return the names of the rewards for a completion's layout.

    The reward for its language is one of them only if every example names its language.
    """
    says_language = all("language" in example for example in examples)
    return LAYOUT_REWARDS if says_language else LAYOUT_REWARDS[:1]


def paid_rewards(questions: Questions, examples: list[dict]) -> dict[str, float]:
    """Return {reward: 1.0} of the rewards that score the samples.

    They are the same for every stage, whatever it was trained on, so that stages can be compared.
    First comes the rule, which says whether a completion is right, then the world's other scores,
    then the layout.
    """
    rule = [] if questions.rule is None else [questions.rule]
    other_rewards = [score.reward for score in questions.scores.values()]
    return dict.fromkeys([*rule, *other_rewards, *layout_rewards(examples)], 1.0)


def sample_groups(questions: Questions, examples, groups, lengths, ids) -> list[dict]:
    """Return Page.samples: for each example a dict for JSON, with its completions.

    Its keys are kind, language, prompt, answer and completions (see reports.page.Page).

    Args:
        questions: The world's questions that the examples belong to.
        examples: The examples, which may be only the first of a measurement.
        groups: The completions (str) of each example, the same number for each.
        lengths: int[p i], in tokens.
        ids: The tokens of all completions of the measurement, in order.
    """
    if not examples:
        return []
    weights = paid_rewards(questions, examples)
    group_size = len(groups[0])
    texts = [text for group in groups for text in group]
    with open_rewards(weights) as rewards:
        repeated_examples = [example for example in examples for _ in range(group_size)]
        scores = rewards.score_together(repeated_examples, texts, picked(ids, range(len(texts))))
    # A group of one has nothing to compare its completion with
    advantages = np.zeros(len(texts))
    if group_size > 1:
        advantages = np.asarray(group_advantages(scores.total, group_size=group_size))
    completions = [
        {
            "text": text,
            "total": _rounded(scores.total[i]),
            "parts": {name: _rounded(part[i]) for name, part in scores.rewards_by_name.items()},
            "advantage": _rounded(advantages[i]),
            "right": questions.rule is not None
            and bool(scores.rewards_by_name[questions.rule][i] == 1),
            "languages": _languages(text),
            "length": int(np.ravel(lengths)[i]),
        }
        for i, text in enumerate(texts)
    ]
    return [
        {key: example.get(key, "") for key in ("kind", "language", "answer")}
        | {
            "prompt": example["question"],
            "completions": completions[i * group_size : (i + 1) * group_size],
        }
        for i, example in enumerate(examples)
    ]


def side_by_side(measured: dict[str, dict]) -> list[dict]:
    """Return Page.pairs: prompts of each kind, with the first completion of each stage.

    Args:
        measured: Title -> the samples of r1.scores.measure.
    """
    groups_by_kind = next(iter(measured.values()), {})
    pairs_by_kind = [
        [
            _beside(dict(zip(measured, groups, strict=True)))
            for groups in zip(
                *(samples.get(kind, ()) for samples in measured.values()), strict=False
            )
        ]
        for kind in groups_by_kind
        if groups_by_kind[kind]
    ]
    return list(chain.from_iterable(zip(*pairs_by_kind, strict=False)))


def _beside(groups):
    """Return one of Page.pairs.

    Args:
        groups: Title -> the group of the same prompt.
    """
    first_group = next(iter(groups.values()))
    # An advantage compares a completion with the others of its group, which are not shown here
    sides = [
        group["completions"][0] | {"title": title, "advantage": None}
        for title, group in groups.items()
    ]
    return {
        "prompt": first_group["prompt"],
        "facts": {"a right answer": first_group["answer"]},
        "sides": sides,
    }


def stage_groups(measured: dict[str, dict]) -> list[dict]:
    """Return Page.samples of all stages.

    Args:
        measured: As in side_by_side.
    """
    return [
        {"stage": title} | group
        for title, samples in measured.items()
        for groups in samples.values()
        for group in groups
    ]


def _languages(text):
    thought = chain_of_thought(text)
    return {language: _rounded(language_share(thought, language)) for language in LANGUAGES}


def _rounded(number):
    """Round to three decimals, for a small file."""
    return round(float(number), 3)
