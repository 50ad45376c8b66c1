"""Settings of supervised fine-tuning: each block is a dataclass, checked when it is built.

Tests: tests/recipes/sft/test_run.py.
"""

import dataclasses

from typing_extensions import override

from deepseek_jax.errors import at
from deepseek_jax.recipes.settings import AdapterRun, QuestionData
from deepseek_jax.reinforce.settings import ModelRewardSettings, RewardSettings
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import Count, Several, Temperature, Weights, unhashed
from deepseek_jax.training.settings import RowSettings, check_evaluations, check_readers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(QuestionData):
    """The conversations: a task's questions with worked solutions, or a user's own conversations.

    Attributes:
        task: The name of the task.
        path, split, columns: The user's own data, in place of task; each line is a conversation,
            see data.conversation_forms.
        template: "chat", "r1_zero" or a text with {question} in it; see data.conversations.
        packing: True to put several conversations in a row.
        readers: As in CorpusSettings (recipes.pretrain.settings).
    """

    packing: bool = True
    readers: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings(AnswerOptions):
    """How held-out prompts are answered, before and after training, sampled and greedily.

    Attributes:
        num_prompts: The number of prompts.
        temperature: For the sampled answers.
    """

    num_prompts: Several = 64
    # Greedy answers are always measured too
    temperature: Temperature = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneSettings(RowSettings):
    """The fine-tuning itself, from any policy.

    Conversations that are longer than a row are dropped.

    Attributes:
        eval_every: Steps between two held-out losses, each before its step.
    """

    eval_every: Count = 50

    def __post_init__(self):
        super().__post_init__()
        check_evaluations(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSettings(FineTuneSettings, RewardSettings, AdapterRun):
    """The whole config of supervised fine-tuning.

    The held-out loss is also measured before and after the training.

    Attributes:
        rewards, accuracy: For the scores of answers. Without them, answers to a world's task are
            scored by the task's own rule, and answers to a user's own conversations are not scored.
        reward_models: As in GrpoSettings.
    """

    # The unhashed fields are for measurements: the training does not depend on them
    rewards: Weights = unhashed(default_factory=dict)
    data: DataSettings
    answers: AnswerSettings = unhashed()
    reward_models: dict[str, ModelRewardSettings] = unhashed(default_factory=dict)

    @override
    def needs_accuracy(self):
        return False

    @override
    def trains_indexer(self):
        # With an adapter the indexer stays as it is
        return self.trains_whole()

    def __post_init__(self):
        super().__post_init__()
        with at("data"):
            check_readers(self.data.readers, self.batch_size)
