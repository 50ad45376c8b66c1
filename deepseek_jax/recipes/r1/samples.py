"""The samples of a measured policy that report.html shows: some prompts, each with all its completions."""

from itertools import chain

import numpy as np

from deepseek_jax.data.texts import picked
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.rewards.language import LANGUAGES, chain_of_thought, language_share
from deepseek_jax.worlds.registry import open_rewards
from deepseek_jax.worlds.world import Questions

LAYOUT_REWARDS = ("think_answer_format", "language_consistency")


def layout_rewards(examples):
    """The rewards for a completion's layout. The one for its language needs examples that all name theirs."""
    says_language = all("language" in example for example in examples)
    return LAYOUT_REWARDS if says_language else LAYOUT_REWARDS[:1]


def paid_rewards(questions: Questions, examples):
    """The rewards of every stage's samples, the same ones whatever it was trained on, so that stages compare:
    the rule first, which says whether a completion is right, then the world's other scores, then the layout.
    """
    rule = [] if questions.rule is None else [questions.rule]
    others = [score.reward for score in questions.scores.values()]
    return dict.fromkeys([*rule, *others, *layout_rewards(examples)], 1.0)


def sample_groups(questions: Questions, examples, groups, lengths, ids):
    """Dicts for JSON: kind, language, prompt, answer and completions (see reports.page.Page).

    groups[i]: the completions (str) of examples[i], as many for each example. lengths: int[p i], in
    tokens. ids: the tokens of all completions, these first.
    """
    if not examples:
        return []
    weights = paid_rewards(questions, examples)
    size = len(groups[0])
    texts = [text for group in groups for text in group]
    with open_rewards(weights) as rewards:
        asked = [example for example in examples for _ in range(size)]
        scores = rewards.score_together(asked, texts, picked(ids, range(len(texts))))
    # A group of one has nothing to compare its completion with
    advantages = np.zeros(len(texts))
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


def side_by_side(measured: dict[str, dict]):
    """Page.pairs: prompts of each kind, with the first completion of each stage. measured: title -> the
    samples of r1.scores.measure.
    """
    kinds = next(iter(measured.values()), {})
    of_kind = [
        [
            _beside(dict(zip(measured, groups, strict=True)))
            for groups in zip(
                *(samples.get(kind, ()) for samples in measured.values()), strict=False
            )
        ]
        for kind in kinds
        if kinds[kind]
    ]
    return list(chain.from_iterable(zip(*of_kind, strict=False)))


def _beside(groups):
    """One of Page.pairs. groups: title -> the group of the same prompt."""
    first = next(iter(groups.values()))
    # An advantage compares a completion with those of its own group, which are not here
    sides = [
        group["completions"][0] | {"title": title, "advantage": None}
        for title, group in groups.items()
    ]
    return {
        "prompt": first["prompt"],
        "facts": {"a right answer": first["answer"]},
        "sides": sides,
    }


def stage_groups(measured: dict[str, dict]):
    """Page.samples of all stages. measured: as in side_by_side."""
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
    """Three decimals, for a small file."""
    return round(float(number), 3)
