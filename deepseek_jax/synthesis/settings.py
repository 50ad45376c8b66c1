"""What a config may say of asking a teacher, varying questions and filtering answers."""

import dataclasses

from deepseek_jax.rewards.language import LANGUAGES
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import added, check_counts, suggest

TOTAL = "reward"  # in config.keep.at_least, the weighted sum


@dataclasses.dataclass(frozen=True)
class QuestionSettings:
    """The questions: task names a small world's; path, a jsonl file or the folder of a TFDS dataset and its
    split, takes its place (data.questions). num_prompts: the first so many of them, None for all.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat. opening: what every answer
    begins with, part of the prompt and of what is written: "<think>\\n", for a teacher that has to think.
    num_held_out: of a task, the questions that are not asked, and that keep.decontaminate may name.
    """

    template: str
    task: str | None = None
    path: str | None = None
    split: str = "train"
    opening: str = ""
    num_prompts: int | None = None
    num_held_out: int = 256

    def __post_init__(self):
        if (self.task is None) == (self.path is None):
            raise ValueError("set either config.data.task, a small world's, or config.data.path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings(AnswerOptions):
    """Temperature and top_p are those that R1's authors recommend, and evaluate with."""

    samples_per_prompt: int
    max_prompt_length: int
    temperature: float = 0.6
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a teacher answers. chunk_size: prompts to a file of samples; whoever is stopped answers at most
    so many once more. teacher_processes: how many processes hold a teacher together, and answer the same
    prompts.
    """

    sampling: SamplingSettings
    seed: int = 0
    chunk_size: int = 64
    teacher_processes: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectionSettings(AnswerOptions):
    """Completions of a policy to be learned from: samples_per_prompt of each of num_prompts prompts, of which
    at most max_per_prompt good ones are kept.
    """

    num_prompts: int
    samples_per_prompt: int
    max_per_prompt: int
    top_p: float = added(1.0)
    slots: int = 128


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Further questions, of each that there is. numbers, names: how many with other ones.

    paraphrase, translate: language -> the prompt, with {question} in it, by which the teacher puts a question
    in other words, or in the other language; what it translates it translates back as well.
    """

    numbers: int = 0
    names: int = 0
    paraphrase: dict = dataclasses.field(default_factory=dict)
    translate: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("numbers", "names"):
            if getattr(self, name) < 0:
                raise ValueError(f"config.augment.{name}={getattr(self, name)} must be at least 0")
        for name in ("paraphrase", "translate"):
            for language, prompt in getattr(self, name).items():
                path = f"config.augment.{name}.{language}"
                if language not in LANGUAGES:
                    raise ValueError(f"{path} is not a language; {suggest(language, LANGUAGES)}")
                if not isinstance(prompt, str) or "{question}" not in prompt:
                    raise ValueError(
                        f"{path}={prompt!r} has no place for the question: {{question}}"
                    )
        if self.translate and set(self.translate) != set(LANGUAGES):
            raise ValueError(
                f"config.augment.translate has {list(self.translate)}; what is translated is translated "
                f"back, so give it a prompt for each of {list(LANGUAGES)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Which completions are kept. at_least: reward -> the least it must be, TOTAL for the weighted sum.

    near_duplicates: the Jaccard similarity of texts, by runs of `shingle` units, from which one is dropped;
    None keeps all. decontaminate: "held_out" for a task's own held-out questions, else jsonl files and splits
    of TFDS datasets, "FOLDER@test"; whatever shares a run of ngram units with their questions or solutions is
    dropped (synthesis.ngrams).
    """

    at_least: dict
    max_per_prompt: int
    near_duplicates: float | None = None
    shingle: int = 5
    decontaminate: tuple[str, ...] = ()
    ngram: int = 10

    def __post_init__(self):
        check_counts(self, "config.keep")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ValueError(
                f"config.keep.near_duplicates={self.near_duplicates} is no similarity; set it within 0..1, "
                "or to None to keep near-duplicates"
            )
