"""The fields of a config that trains a reward model or a judge: one dataclass for each block."""

import dataclasses
from typing import ClassVar, Literal

from deepseek_jax.data.chat import Template
from deepseek_jax.data.preferences import RESPONSES
from deepseek_jax.data.settings import OwnData
from deepseek_jax.errors import at
from deepseek_jax.recipes.settings import AdapterRun, PolicyRun
from deepseek_jax.settings import Count
from deepseek_jax.training.settings import RowSettings, check_readers

QUESTION_LINE = "{question}\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(OwnData):
    """The preferences: num_train records of the bilingual small world, or all those of a split of path, see
    data.preferences. template: as in supervised fine-tuning.
    """

    template: Template = QUESTION_LINE
    num_train: Count = 4096
    num_held_out: Count = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeDataSettings(DataSettings):
    """The pairs that a judge learns to compare. readers: as in a pretrain config's data."""

    packing: ClassVar[bool] = True
    readers: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainingSettings(RowSettings):
    """The training of a reward model. kind: "helpfulness" learns pairs, "safety" labelled responses.

    A step is batch_size pairs or responses; those longer than sequence_length tokens are dropped.
    """

    data: DataSettings
    kind: Literal[tuple(RESPONSES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeTrainingSettings(RowSettings):
    """The training of a judge.

    A step is batch_size rows of sequence_length tokens; a row packs several judgements. A verdict with its
    reasoning has at most max_completion_length tokens. slots: verdicts that are sampled at once.
    """

    # No held-out loss is measured on the way
    eval_every: ClassVar[int] = 1
    data: JudgeDataSettings
    max_completion_length: Count = 24
    slots: Count = 128

    def __post_init__(self):
        super().__post_init__()
        with at("data"):
            check_readers(self.data.readers, self.batch_size)
        if self.data.path is not None:
            raise ValueError(
                f"data.path={self.data.path!r}: judgements can be written only for the small world's pairs; "
                "to train on your own, give conversations with judgements to recipe='sft'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModelSettings(RewardTrainingSettings, AdapterRun):
    """A whole config of recipes.reward_model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings(JudgeTrainingSettings, PolicyRun):
    """A whole config of recipes.judge."""

    def trains_indexer(self):
        return True
