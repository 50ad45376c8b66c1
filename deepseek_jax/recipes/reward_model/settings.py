"""What a config of a reward model's training may say, and what one of a run that uses reward models."""

import dataclasses
from typing import Literal

from deepseek_jax.data.preferences import RESPONSES
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.start import check_one_start
from deepseek_jax.settings import check_counts
from deepseek_jax.training.optimizer import OptimizerSettings

QUESTION_LINE = "{question}\n"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The preferences: num_train records of the bilingual small world, or path, a jsonl file, which num_train
    says nothing of. template: as in supervised fine-tuning.
    """

    path: str | None = None
    template: str = QUESTION_LINE
    num_train: int = 4096
    num_held_out: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A training on preferences itself, whatever it starts from."""

    num_steps: int
    batch_size: int
    sequence_length: int
    data: DataSettings
    optimizer: OptimizerSettings
    seed: int = 0
    micro_batches: int = 1
    save_every: int = 50
    log_every: int = 1

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for a number out of its range."""
        check_counts(self, path)
        check_counts(self.data, f"{path}.data")
        self.make_optimizer(path)  # for what it raises

    def make_optimizer(self, path="config"):
        """The optax transformation of the whole training."""
        return self.optimizer.make(self.num_steps, f"{path}.optimizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainingSettings(TrainingSettings):
    """The training of a reward model. kind: "helpfulness", of pairs, or "safety", of labelled responses.

    A step is batch_size pairs or responses; those longer than sequence_length tokens are left out.
    """

    kind: Literal[tuple(RESPONSES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeTrainingSettings(TrainingSettings):
    """The training of a judge.

    A step is batch_size rows of sequence_length tokens, of several judgements each. A verdict, with its
    reasoning, has up to max_completion_length tokens; slots of them are written at once.
    """

    max_completion_length: int = 24
    slots: int = 128

    def check(self, path):
        """As TrainingSettings, and for preferences other than the bilingual small world's."""
        super().check(path)
        if self.data.path is not None:
            raise ValueError(
                f"{path}.data.path={self.data.path!r}: judgements are written for the small world's pairs "
                "alone; give conversations with judgements of your own to recipe='sft'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRun(TrainingSettings):
    """A config's other fields: what the training starts from."""

    recipe: str
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: BaseSettings | None = None

    def __post_init__(self):
        self.check("config")
        check_one_start(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelSettings(PreferenceRun, RewardTrainingSettings):
    """A whole config of recipes.reward_model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings(PreferenceRun, JudgeTrainingSettings):
    """A whole config of recipes.judge."""
