"""What a config of R1's stages may say: each block a dataclass, checked when built."""

import dataclasses
from typing import ClassVar

from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.reward_model.settings import (
    JudgeTrainingSettings,
    RewardTrainingSettings,
)
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.recipes.start import check_one_start
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import added, check_counts
from deepseek_jax.synthesis.settings import RejectionSettings

TEMPLATE = "r1_zero"  # of a world whose prompts have none of their own
# The blocks and stages, and of the first two the rewards, of these names
REWARD_MODELS = ("helpfulness_model", "safety_model")
PREFERENCE_STAGES = (*REWARD_MODELS, "judge")


@dataclasses.dataclass(frozen=True)
class ConversationSettings:
    """How many reasoning questions (num_puzzles) and general ones (num_requests) are learned from with their
    good solutions.
    """

    packing: ClassVar[bool] = True
    num_puzzles: int = 0
    num_requests: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1FineTuneSettings(FineTuneSettings):
    """A stage of fine-tuning. data: its conversations, beside the completions that sampling accepted."""

    data: ConversationSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(AnswerOptions):
    """How every stage's policy is measured: samples of each of the held-out puzzles and requests. Of the
    first shown_puzzles and shown_requests all samples are kept, to be read in report.html.
    """

    num_puzzles: int = 128
    num_requests: int = 96
    samples: int = 16
    top_p: float = added(1.0)
    slots: int = 128
    shown_puzzles: int = 12
    shown_requests: int = 8

    def __post_init__(self):
        check_counts(self, "config.evaluation")
        for name in ("num_puzzles", "num_requests"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"config.evaluation.{name}={getattr(self, name)}: an interval needs at least 2 prompts"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDataSettings:
    """A user's own data in the place of a world. reasoning: a jsonl file of questions in GSM8K's format,
    whose answers the reward `rule` checks. general: a jsonl file of conversations, whose last question is
    asked and whose last message is a good answer; None for no general questions. template: see data.chat.
    """

    reasoning: str
    rule: str = "math_verify"
    general: str | None = None
    template: str = TEMPLATE


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1Settings:
    """A whole config of this recipe. The stages' own seeds follow from seed.

    world: whose reasoning and general questions the stages ask; data takes its place. The stages start from
    base, pre-trained on the world's corpus, or from init_from, a checkpoint with its own tokenizer. traces
    and rejection sample answers to reasoning questions, judged to general ones, which no conversation
    answers. Of the reinforcements scenarios, and no other, may have general questions, paid by
    REWARD_MODELS among others. Without general questions leave out judge, judged, helpfulness_model and
    safety_model.
    """

    recipe: str
    seed: int
    model: dict
    zero: ReinforceSettings
    traces: RejectionSettings
    cold_start: R1FineTuneSettings
    reasoning: ReinforceSettings
    rejection: RejectionSettings
    sft: R1FineTuneSettings
    scenarios: ReinforceSettings
    evaluation: EvaluationSettings
    world: str = "bilingual"
    data: OwnDataSettings | None = None
    base: BaseSettings | None = None
    init_from: str | None = None
    judge: JudgeTrainingSettings | None = None
    judged: RejectionSettings | None = None
    helpfulness_model: RewardTrainingSettings | None = None
    safety_model: RewardTrainingSettings | None = None
    mesh: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_one_start(self)
        if self.base is not None:
            self.base.check_numbers("config.base")
        for name in ("zero", "cold_start", "reasoning", "sft", *PREFERENCE_STAGES, "scenarios"):
            if getattr(self, name) is not None:
                getattr(self, name).check(f"config.{name}")
        for name in ("traces", "rejection", "judged"):
            if getattr(self, name) is not None:
                check_counts(getattr(self, name), f"config.{name}")
        for name in ("zero", "reasoning", "scenarios"):
            general = getattr(self, name).general
            if general and (name != "scenarios" or general.path is not None):
                raise ValueError(
                    f"config.{name}.general={general}: stage 4 asks the world's general questions, and no "
                    "other stage does; set config.scenarios.general, without a path"
                )
        if (self.judge is None) != (self.judged is None):
            raise ValueError("config.judge trains what config.judged asks; set both, or neither")

    def reward_models(self):
        """The names of the reward models that are trained."""
        return [name for name in REWARD_MODELS if getattr(self, name) is not None]
