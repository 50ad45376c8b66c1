"""Settings for asking a teacher, varying questions and filtering answers.

Tests: tests/synthesis/test_augment.py.
"""

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

# The name of the weighted sum of rewards in config.keep.at_least
TOTAL = "reward"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionSettings(OwnData):
    r"""The questions that a teacher answers: from a task, or from a path (data.questions).

    Attributes:
        template: "chat", "r1_zero" or a text with {question} in it; see `data.chat`.
        task: The name of the task. Either task or path is set, not both.
        opening: The text that every answer begins with. It is part of the prompt and of the
            dataset: "<think>\n" makes a teacher reason.
        num_prompts: How many questions are used, from the first one on; None for all.
        num_held_out: Questions of a task that are not asked. keep.decontaminate may name them.

    Raises:
        ValueError: task and path are both set, or neither is.
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
    """Options of the teacher's sampling.

    Attributes:
        samples_per_prompt: Completions for each prompt.
        max_prompt_length: Most tokens of a prompt; longer prompts are not asked.
        temperature, top_p: The defaults are the values that R1's authors recommend and evaluate
            with.
    """

    samples_per_prompt: Count
    max_prompt_length: Count
    temperature: GreedyOrTemperature = 0.6
    top_p: PositiveShare = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskSettings(Settings):
    """How a teacher answers.

    Attributes:
        sampling: Options of the sampling.
        seed: Seed of the sampling, of the task's questions and of their variants.
        chunk_size: Prompts in a file of samples.
        teacher_processes: Number of processes that share one teacher. The teacher is sharded over
            their devices, and they answer the same prompts.
    """

    sampling: SamplingSettings
    seed: Seed = 0
    chunk_size: Count = 64
    teacher_processes: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSettings(AnswerOptions):
    """Rejection sampling: how many completions are sampled and how many of them are accepted.

    Attributes:
        num_prompts: Prompts to answer.
        samples_per_prompt: Completions for each prompt.
        max_per_prompt: Most completions of a prompt that are accepted.
    """

    num_prompts: Count
    samples_per_prompt: Count
    max_per_prompt: Count
    top_p: PositiveShare = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """More questions, derived from each question of the data.

    Attributes:
        numbers: How many variants with other numbers.
        names: How many variants with other names.
        paraphrase: Language -> the prompt, with {question} in it, that asks the teacher to put a
            question in other words.
        translate: Language -> the prompt, with {question} in it, that asks the teacher to translate
            a question. Translations are also translated back.

    Raises:
        ValueError: A prompt is for an unknown language or has no {question}, or translate does not
            have a prompt for every language.
    """

    numbers: Natural = 0
    names: Natural = 0
    paraphrase: dict[str, str] = dataclasses.field(default_factory=dict)
    translate: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("paraphrase", "translate"):
            for language, prompt in getattr(self, name).items():
                setting = f"{name}.{language}={prompt!r}"
                if language not in LANGUAGES:
                    raise ValueError(
                        f"{setting} is not for a language; {suggest(language, LANGUAGES)}"
                    )
                if "{question}" not in prompt:
                    raise ValueError(f"{setting} has no place for the question: {{question}}")
        if self.translate and set(self.translate) != set(LANGUAGES):
            raise ValueError(
                f"translate={self.translate}: a question is translated and then back, so give a prompt for "
                f"each of {', '.join(LANGUAGES)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Filters of completions.

    Attributes:
        at_least: Reward -> its smallest allowed value. TOTAL is the weighted sum of the rewards. A
            completion that this reward does not score is dropped, too.
        max_per_prompt: Most completions of a question that are accepted.
        near_duplicates: Drop a text with at least this Jaccard similarity to an earlier text, over
            runs of `shingle` units. None drops none.
        shingle: Units in a run for near_duplicates.
        decontaminate: Evaluation sets. "held_out" means the held-out questions of the task; other
            names are as for `data.questions.evaluation_texts`, such as "FOLDER@test". A completion
            is dropped if it, or its question, shares a run of `ngram` units with the questions or
            solutions of a set (synthesis.ngrams).
        ngram: Units in a run for decontaminate.
    """

    at_least: Weights
    max_per_prompt: Count
    near_duplicates: PositiveShare | None = None
    shingle: Count = 5
    decontaminate: tuple[Data, ...] = ()
    ngram: Count = 10
