"""More questions for a teacher: varied by rule, or rewritten by the teacher itself.

The fate of every question is counted: origin -> Counter of fates. A question that passes has the
fate "kept".
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Protocol

import numpy as np
from etils.epath import Path

from deepseek_jax.data.chat import asked_messages
from deepseek_jax.errors import at
from deepseek_jax.rewards.format import summary
from deepseek_jax.rewards.language import LANGUAGES, language_share
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.settings import AugmentSettings, KeepSettings
from deepseek_jax.synthesis.teacher import read_rows
from deepseek_jax.synthesis.vary import recomputed, vary_names, vary_numbers

SOURCE = "source"
# Origins of questions that the teacher rewrites
REWRITTEN = ("paraphrase", "translation", "back_translation")
BY_RULE = {"numbers": vary_numbers, "names": vary_names}
# Smallest allowed share of a rewritten question's words that are in its target language
LEAST_SHARE = 0.8


class VarySettings(Protocol):
    """Settings of varied questions: a GenerateSettings (recipes.generate.settings) has them."""

    @property
    def augment(self) -> AugmentSettings:
        """How many questions to derive, in which ways."""

    @property
    def keep(self) -> KeepSettings:
        """The evaluation sets that questions must not repeat."""

    @property
    def seed(self) -> int:
        """Seed of the variants."""


def augmented(
    settings: VarySettings,
    questions: list[dict],
    evaluation: Evaluation | None,
    ask: Callable[[str, list[dict]], Path],
) -> tuple[list[dict], dict[str, Counter[str]]]:
    """Return (questions to ask, fates): the questions and the ones that settings.augment derives.

    Each example has an origin, and under derived_from the question that it comes from.

    Args:
        settings: The ways of deriving, and their seed.
        questions: Examples as in data.questions.
        evaluation: The texts that no question may share a run with, or None.
        ask: ask(name, examples) lets the teacher answer each example once and returns the folder of
            its chunks.

    Raises:
        ValueError: A way of deriving gives no new question, or no question passes `evaluation`; the
            message names the field.
    """
    augment = settings.augment
    fates: defaultdict[str, Counter[str]] = defaultdict(Counter)
    screen = _Screen(evaluation, fates)
    sources = [q | {"origin": SOURCE, "derived_from": q["question"]} for q in questions]
    kept_questions = screen.pass_on(sources)
    if not kept_questions:
        raise ValueError(
            f"keep.decontaminate={settings.keep.decontaminate} leaves none of {len(sources)} questions: each "
            f"shares a run of keep.ngram={settings.keep.ngram} words with an evaluation set"
        )
    examples_by_origin = {}
    for index, (origin, vary) in enumerate(BY_RULE.items()):
        if count := getattr(augment, origin):
            variants = _varied(kept_questions, vary, count, [settings.seed, index], fates[origin])
            with at(f"augment.{origin}"):
                examples_by_origin[origin] = screen.pass_on(
                    example | {"origin": origin} for example in variants
                )
    if augment.paraphrase:
        examples_by_origin["paraphrase"] = _rewritten(
            "paraphrase", kept_questions, augment.paraphrase, ask, screen
        )
    if augment.translate:
        examples_by_origin["translation"] = _rewritten(
            "translation", kept_questions, augment.translate, ask, screen
        )
    for origin, examples in examples_by_origin.items():
        if not examples:
            fates_text = ", ".join(f"{count} {fate}" for fate, count in fates[origin].most_common())
            with at(f"augment.{'translate' if origin == 'translation' else origin}"):
                raise ValueError(
                    f"gave no new question ({fates_text}); correct this field or remove it"
                )
    # Not an error without a new question: a perfect translation back is the question itself
    if augment.translate:
        translations = examples_by_origin["translation"]
        examples_by_origin["back_translation"] = _rewritten(
            "back_translation", translations, augment.translate, ask, screen
        )
    return kept_questions + [
        example for examples in examples_by_origin.values() for example in examples
    ], dict(fates)


class _Screen:
    """Filter that drops repeated questions and questions of an evaluation set."""

    def __init__(self, evaluation: Evaluation | None, fates):
        self.evaluation, self.fates = evaluation, fates
        self.seen: set[tuple[str, ...]] = set()

    def pass_on(self, examples):
        """Return the list of examples that pass."""
        return [example for example in examples if self._passes(example)]

    def _passes(self, example):
        messages = tuple(message["content"] for message in asked_messages(example))
        leaks = self.evaluation and self.evaluation.shares_a_run("\n".join(messages))
        fate = "contaminated" if leaks else "repeated" if messages in self.seen else "kept"
        self.seen.add(messages)
        self.fates[example["origin"]][fate] += 1
        return fate == "kept"


def _varied(examples, vary, count, seed, fates):
    """Yield `count` variants of each example by a rule.

    Variants are dropped if the answer recomputed from their text differs from their answer.
    """
    for index, example in enumerate(examples):
        for number in range(count):
            # Each variant has its own seed, so that a larger count does not change the first variants
            variant = vary(np.random.default_rng([*seed, index, number]), example)
            if variant is None:
                fates["nothing to change"] += 1
            elif recomputed(variant["question"]) != variant["answer"]:
                fates["answers disagree"] += 1
            else:
                yield variant | {"derived_from": example["question"]}


def _rewritten(origin, examples, prompts, ask, screen):
    """Return the examples as the teacher rewrites them.

    It answers each once, with the prompt for the question's language.
    """
    example_languages = [(e, _language(e)) for e in examples]
    requests = [
        {
            "question": prompts[language].replace("{question}", e["question"]),
            "of": e,
            "to": language,
        }
        for e, language in example_languages
        if language in prompts
    ]
    if origin != "paraphrase":
        for request in requests:
            # The prompt is in the question's language, the answer in the other one of the two
            (request["to"],) = set(LANGUAGES) - {request["to"]}
    if not requests:
        return []
    answers = [(row["example"], row["samples"][0]) for row in read_rows(ask(origin, requests))]
    fates = screen.fates[origin]
    # ask drops prompts above sampling.max_prompt_length
    fates["too long to ask"] += len(requests) - len(answers)
    variants = []
    for request, sample in answers:
        text, example, language = summary(sample["text"]), request["of"], request["to"]
        if not sample["finished"]:
            fates["unfinished"] += 1
        elif language_share(text, language) < LEAST_SHARE:
            fates["in another language"] += 1
        else:
            # Only the last question is rewritten; the turns before it stay
            messages = asked_messages(example)[:-1] + [{"role": "user", "content": text}]
            fields = {
                "question": text,
                "messages": messages,
                "origin": origin,
                "language": language,
            }
            variants.append(example | fields)
    return screen.pass_on(variants)


def _language(example):
    """Return the example's language if it names one, else the main language of its question."""
    named_language = example.get("language")
    return named_language or max(
        LANGUAGES, key=lambda name: language_share(example["question"], name)
    )
