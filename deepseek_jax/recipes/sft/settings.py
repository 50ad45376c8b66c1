"""The fields of a config of supervised fine-tuning: one dataclass for each block, checked when built."""

import dataclasses

from deepseek_jax.errors import at
from deepseek_jax.recipes.settings import AdapterRun, QuestionData
from deepseek_jax.reinforce.settings import ModelRewardSettings, RewardSettings
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import Count, Several, Temperature, Weights, unhashed
from deepseek_jax.training.settings import RowSettings, check_evaluations, check_readers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(QuestionData):
    """The conversations. task: questions with their worked solutions. path, split, columns: data in place of
    task, whose lines are conversations: see data.conversation_forms.

    template: "chat", "r1_zero" or a text with {question} in it; see data.conversations. packing: put several
    conversations in a row. readers: as in a pretrain config's data.
    """

    packing: bool = True
    readers: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings(AnswerOptions):
    """How num_prompts held-out prompts are answered, before and after training, sampled and greedily."""

    num_prompts: Several = 64
    # That of the sampled answers; greedy ones are always measured too
    temperature: Temperature = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneSettings(RowSettings):
    """The fine-tuning itself, whatever it starts from.

    Conversations longer than a row are dropped. The held-out loss is measured before every eval_every-th
    step.
    """

    eval_every: Count = 50

    def __post_init__(self):
        super().__post_init__()
        check_evaluations(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSettings(FineTuneSettings, RewardSettings, AdapterRun):
    """A whole config of this recipe.

    The held-out loss is measured before and after training too. rewards, accuracy: of answers; without them
    answers to a world's task are scored by its own rule, and those to conversations of one's own by none.
    reward_models: as in a GRPO config.
    """

    # These are of measurements: the training depends on none
    rewards: Weights = unhashed(default_factory=dict)
    data: DataSettings
    answers: AnswerSettings = unhashed()
    reward_models: dict[str, ModelRewardSettings] = unhashed(default_factory=dict)

    def needs_accuracy(self):
        return False

    def trains_indexer(self):
        # Beside an adapter it stays as it is
        return self.trains_whole()

    def __post_init__(self):
        super().__post_init__()
        with at("data"):
            check_readers(self.data.readers, self.batch_size)
