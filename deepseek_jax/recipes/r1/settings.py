"""What a config of R1's stages may say: each block a dataclass, checked when built."""

import dataclasses
from typing import ClassVar

from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.reward_model.settings import (
    JudgeTrainingSettings,
    RewardTrainingSettings,
)
from deepseek_jax.recipes.settings import check_model
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.settings import Count, Natural, NonNegative, Several

TEMPLATE = "r1_zero"  # of every prompt, in every stage
# The blocks and stages, and of the first two the rewards, of these names
REWARD_MODELS = ("helpfulness_model", "safety_model")
PREFERENCE_STAGES = (*REWARD_MODELS, "judge")


@dataclasses.dataclass(frozen=True)
class ConversationSettings:
    """How many puzzles and requests of the bilingual world are shown with their good solutions."""

    template: ClassVar[str] = TEMPLATE
    packing: ClassVar[bool] = True
    num_puzzles: Natural = 0
    num_requests: Natural = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1FineTuneSettings(FineTuneSettings):
    """A stage of fine-tuning. data: its conversations, beside the completions that sampling accepted."""

    data: ConversationSettings


@dataclasses.dataclass(frozen=True)
class RejectionSettings:
    """Completions of a policy to be learned from: samples_per_prompt of each of num_prompts prompts, of which
    at most max_per_prompt good ones are kept.
    """

    num_prompts: Count
    samples_per_prompt: Count
    max_per_prompt: Count
    max_completion_length: Count
    temperature: NonNegative = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How every stage's policy is measured: samples of each of the held-out puzzles and requests. Of the
    first shown_puzzles and shown_requests all samples are kept, to be read in report.html.
    """

    max_completion_length: Count
    num_puzzles: Several = 128
    num_requests: Several = 96
    samples: Count = 16
    temperature: NonNegative = 1.0
    slots: Count = 128
    shown_puzzles: Count = 12
    shown_requests: Count = 8


@dataclasses.dataclass(frozen=True)
class R1Settings:
    """A whole config of this recipe. The stages' own seeds follow from seed. traces and rejection sample
    answers to puzzles, judged to requests, which no conversation answers. Of the reinforcements scenarios,
    and no other, has general questions, paid by REWARD_MODELS among others.
    """

    recipe: str
    seed: Natural
    model: dict
    base: BaseSettings
    zero: ReinforceSettings
    traces: RejectionSettings
    cold_start: R1FineTuneSettings
    reasoning: ReinforceSettings
    judge: JudgeTrainingSettings
    rejection: RejectionSettings
    judged: RejectionSettings
    helpfulness_model: RewardTrainingSettings
    safety_model: RewardTrainingSettings
    sft: R1FineTuneSettings
    scenarios: ReinforceSettings
    evaluation: EvaluationSettings
    mesh: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_model(self.model, None)
        if self.base.corpus != "bilingual":
            raise ValueError(
                f"base.corpus={self.base.corpus!r}: the stages ask the puzzles and requests of the "
                "bilingual world; set it to 'bilingual'"
            )
        for name in ("zero", "reasoning", "scenarios"):
            general = getattr(self, name).general
            if (general is None) == (name == "scenarios") or (general and general.path is not None):
                raise ValueError(
                    f"{name}.general={general}: stage 4 asks general questions, the bilingual world's "
                    "requests, and no other stage does; set scenarios.general, without a path"
                )
        for name in PREFERENCE_STAGES:
            data = getattr(self, name).data
            if data.path is not None or data.template != TEMPLATE:
                wrong = "template" if data.path is None else "path"
                raise ValueError(
                    f"{name}.data.{wrong}={getattr(data, wrong)!r}: its preferences are about the bilingual "
                    f"world's requests; leave path out, and set template to {TEMPLATE!r}"
                )
