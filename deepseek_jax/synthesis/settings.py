"""What a config may say of asking a teacher, varying questions and filtering answers."""

import dataclasses

from deepseek_jax.data.chat import Template
from deepseek_jax.errors import suggest
from deepseek_jax.rewards.language import LANGUAGES
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import (
    Count,
    Natural,
    NonNegative,
    PositiveShare,
    Settings,
    Weights,
    added,
)

TOTAL = "reward"  # in config.keep.at_least, the weighted sum


@dataclasses.dataclass(frozen=True)
class QuestionSettings:
    """The questions: task names a small world's; path, a jsonl file or the folder of a TFDS dataset and its
    split, takes its place (data.questions). num_prompts: the first so many of them, None for all.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat. opening: what every answer
    begins with, part of the prompt and of what is written: "<think>\\n", for a teacher that has to think.
    num_held_out: of a task, the questions that are not asked, and that keep.decontaminate may name.
    """

    template: Template
    task: str | None = None
    path: str | None = None
    split: str = "train"
    opening: str = ""
    num_prompts: Count | None = None
    num_held_out: Count = 256

    def __post_init__(self):
        if (self.task is None) == (self.path is None):
            raise ValueError(
                f"task={self.task!r} and path={self.path!r}: set just one of them, a small world's task or "
                "where the questions lie"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings(AnswerOptions):
    """Temperature and top_p are those that R1's authors recommend, and evaluate with."""

    samples_per_prompt: Count
    max_prompt_length: Count
    temperature: NonNegative = 0.6
    top_p: PositiveShare = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskSettings(Settings):
    """How a teacher answers. chunk_size: prompts to a file of samples; whoever is stopped answers at most
    so many once more. teacher_processes: how many processes hold a teacher together, and answer the same
    prompts.
    """

    sampling: SamplingSettings
    seed: Natural = 0
    chunk_size: Count = 64
    teacher_processes: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSettings(AnswerOptions):
    """Completions of a policy to be learned from: samples_per_prompt of each of num_prompts prompts, of which
    at most max_per_prompt good ones are kept.
    """

    num_prompts: Count
    samples_per_prompt: Count
    max_per_prompt: Count
    top_p: PositiveShare = added(1.0)
    slots: Count = 128


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Further questions, of each that there is. numbers, names: how many with other ones.

    paraphrase, translate: language -> the prompt, with {question} in it, by which the teacher puts a question
    in other words, or in the other language; what it translates it translates back as well.
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
                f"translate={self.translate}: a question is translated and back again, so give a prompt for "
                f"each of {', '.join(LANGUAGES)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Which completions are kept. at_least: reward -> the least it must be, TOTAL for the weighted sum.

    near_duplicates: the Jaccard similarity of texts, by runs of `shingle` units, from which one is dropped;
    None keeps all. decontaminate: "held_out" for a task's own held-out questions, else jsonl files and splits
    of TFDS datasets, "FOLDER@test"; whatever shares a run of ngram units with their questions or solutions is
    dropped (synthesis.ngrams).
    """

    at_least: Weights
    max_per_prompt: Count
    near_duplicates: PositiveShare | None = None
    shingle: Count = 5
    decontaminate: tuple[str, ...] = ()
    ngram: Count = 10
