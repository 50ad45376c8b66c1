"""Settings of training a reward model or a judge: each block of a config is a dataclass.

Tests: tests/recipes/test_judge.py.
"""

import dataclasses
from typing import ClassVar

from typing_extensions import override

from deepseek_jax.data.chat import Template
from deepseek_jax.data.preferences import RewardKind
from deepseek_jax.data.settings import OwnData
from deepseek_jax.errors import at
from deepseek_jax.recipes.settings import AdapterRun, PolicyRun
from deepseek_jax.settings import Count
from deepseek_jax.training.settings import RowSettings, check_readers

QUESTION_LINE = "{question}\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(OwnData):
    """The preferences to learn from: the bilingual small world's, or a user's own.

    Attributes:
        path, split, columns: The user's own records, all of the split, see data.preferences.
            Without a path the records are the bilingual small world's.
        template: As in supervised fine-tuning.
        num_train: The number of training records of the small world.
        num_held_out: The number of held-out records.
    """

    template: Template = QUESTION_LINE
    num_train: Count = 4096
    num_held_out: Count = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeDataSettings(DataSettings):
    """The pairs that a judge learns to compare.

    Attributes:
        readers: As in CorpusSettings (recipes.pretrain.settings).
    """

    packing: ClassVar[bool] = True
    readers: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainingSettings(RowSettings):
    """The training of a reward model.

    A step is batch_size pairs or responses. Pairs or responses with more than sequence_length
    tokens are dropped.

    Attributes:
        kind: "helpfulness" learns from pairs, "safety" from labelled responses.
    """

    data: DataSettings
    kind: RewardKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeTrainingSettings(RowSettings):
    """The training of a judge.

    A step is batch_size rows of sequence_length tokens; a row packs several judgements.

    Attributes:
        max_completion_length: The most tokens of a verdict with its reasoning.
        slots: Verdicts that are sampled at once.
    """

    # No held-out loss is measured during the training
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
    """The whole config of recipes.reward_model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings(JudgeTrainingSettings, PolicyRun):
    """The whole config of recipes.judge."""

    @override
    def trains_indexer(self):
        return True
