"""Settings for asking a teacher, varying questions and filtering answers."""

import dataclasses

from deepseek_jax.data.chat import Template
from deepseek_jax.data.settings import OwnData
from deepseek_jax.errors import suggest
from deepseek_jax.rewards.language import LANGUAGES
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import (
    Count,
    Data,
    GreedyOrTemperature,
    Named,
    Natural,
    PositiveShare,
    Seed,
    Settings,
    Weights,
)

TOTAL = "reward"  # in config.keep.at_least, the weighted sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionSettings(OwnData):
    """The questions: from a task, or from a split of path (data.questions). num_prompts: how many are used,
    from the first; None for all.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat. opening: the first text of
    every answer, part of the prompt and of the dataset: "<think>\\n" makes a teacher reason. num_held_out: a
    task's questions that are not asked; keep.decontaminate may name them.
    """

    template: Template
    task: Named | None = None
    opening: str = ""
    num_prompts: Count | None = None
    num_held_out: Count = 256

    def __post_init__(self):
        if (self.task is None) == (self.path is None):
            raise ValueError(
                f"task={self.task!r} and path={self.path!r}: set just one of them, a task or the path of "
                "the questions"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings(AnswerOptions):
    """temperature, top_p: by default those that R1's authors recommend and evaluate with."""

    samples_per_prompt: Count
    max_prompt_length: Count
    temperature: GreedyOrTemperature = 0.6
    top_p: PositiveShare = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskSettings(Settings):
    """How a teacher answers. chunk_size: prompts per file of samples. teacher_processes: the number
    of processes that share one teacher, sharded over their devices, and answer the same prompts.
    """

    sampling: SamplingSettings
    seed: Seed = 0
    chunk_size: Count = 64
    teacher_processes: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSettings(AnswerOptions):
    """Rejection sampling: samples_per_prompt completions for each of num_prompts prompts, of which at most
    max_per_prompt are accepted.
    """

    num_prompts: Count
    samples_per_prompt: Count
    max_per_prompt: Count
    top_p: PositiveShare = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """More questions, derived from each given one. numbers, names: how many with other numbers or names.

    paraphrase, translate: language -> the prompt, with {question} in it, that asks the teacher to put a
    question in other words, or to translate it. Translations are also translated back.
    """

    numbers: Natural = 0
    names: Natural = 0
    paraphrase: dict[str, str] = dataclasses.field(default_factory=dict)
    translate: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("paraphrase", "translate"):
            for language, prompt in getattr(self, name).items():
                given = f"{name}.{language}={prompt!r}"
                if language not in LANGUAGES:
                    raise ValueError(
                        f"{given} is not for a language; {suggest(language, LANGUAGES)}"
                    )
                if "{question}" not in prompt:
                    raise ValueError(f"{given} has no place for the question: {{question}}")
        if self.translate and set(self.translate) != set(LANGUAGES):
            raise ValueError(
                f"translate={self.translate}: a question is translated and then back, so give a prompt for "
                f"each of {', '.join(LANGUAGES)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Filters of completions. at_least: reward -> its smallest allowed value, TOTAL for the weighted sum.

    near_duplicates: drop a text with at least this Jaccard similarity, over runs of `shingle` units, to an
    earlier one; None drops none. decontaminate: "held_out" for a task's own held-out questions, else names
    as of data.questions.evaluation_texts, such as "FOLDER@test". A completion is dropped if it, or its
    question, shares a run of ngram units with their questions or solutions (synthesis.ngrams).
    """

    at_least: Weights
    max_per_prompt: Count
    near_duplicates: PositiveShare | None = None
    shingle: Count = 5
    decontaminate: tuple[Data, ...] = ()
    ngram: Count = 10
