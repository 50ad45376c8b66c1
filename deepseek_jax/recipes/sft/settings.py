"""What a config of supervised fine-tuning may say: each block a dataclass, checked when built."""

import dataclasses

from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.start import check_one_start
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import check_counts, check_evaluations
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.worlds.arithmetic.corpus import PROMPT_TEMPLATE


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The conversations: task names a small world, whose sums are answered by their working; path, a jsonl
    file or a TFDS dataset and its split, takes its place.

    template: "chat", "r1_zero" or a text with {question} in it; see data.conversations. packing: several
    conversations to a row.
    """

    task: str = "arithmetic"
    path: str | None = None
    split: str = "train"
    template: str = PROMPT_TEMPLATE
    packing: bool = True
    num_held_out: int = 256

    def __post_init__(self):
        if self.num_held_out < 2:
            raise ValueError(
                f"config.data.num_held_out={self.num_held_out}: an interval needs at least 2 conversations"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings(AnswerOptions):
    """How held-out prompts are answered before and after: num_prompts of them, sampled and greedily."""

    num_prompts: int = 64

    def __post_init__(self):
        if self.num_prompts < 2:
            raise ValueError(
                f"config.answers.num_prompts={self.num_prompts}: an interval needs at least 2 answers"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"config.answers.temperature={self.temperature} must be above 0; greedy comes beside it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """The fine-tuning itself, whatever it starts from.

    A step is batch_size rows of sequence_length tokens; longer conversations are left out. The held-out loss
    is measured before every eval_every-th step.
    """

    num_steps: int
    batch_size: int
    sequence_length: int
    optimizer: OptimizerSettings
    seed: int = 0
    micro_batches: int = 1
    eval_every: int = 50
    save_every: int = 50
    log_every: int = 1

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for what does not go together."""
        check_counts(self, path)
        if self.sequence_length < 2:
            raise ValueError(
                f"{path}.sequence_length={self.sequence_length} leaves nothing to predict; "
                "set it to at least 2"
            )
        check_evaluations(self, path)
        self.make_optimizer(path)  # for what it raises

    def make_optimizer(self, path="config"):
        """The optax transformation of the whole fine-tuning."""
        return self.optimizer.make(self.num_steps, f"{path}.optimizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSettings(FineTuneSettings):
    """A whole config of this recipe. accuracy: the reward that says whether an answer is right.

    The held-out loss is measured before and after, too. reward_models: as in a GRPO config.
    """

    recipe: str
    accuracy: str
    rewards: dict
    data: DataSettings
    answers: AnswerSettings
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    reward_models: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: BaseSettings | None = None

    def __post_init__(self):
        self.check("config")
        for name, block in {"data": self.data, "answers": self.answers}.items():
            check_counts(block, f"config.{name}")
        if self.accuracy not in self.rewards:
            raise ValueError(
                f"config.accuracy={self.accuracy!r} is none of config.rewards: {list(self.rewards)}"
            )
        check_one_start(self)
