"""Settings of GRPO: each block of its config is a dataclass, checked when it is built.

Tests: tests/recipes/grpo/test_effort.py, tests/recipes/grpo/test_run.py,
tests/recipes/test_adapters.py.
"""

import dataclasses

from deepseek_jax.recipes.settings import AdapterRun, QuestionData
from deepseek_jax.reinforce.effort import LENGTH_PENALTY, EffortSettings
from deepseek_jax.reinforce.settings import ModelRewardSettings, ReinforceSettings
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.settings import unhashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoSettings(Conversing, ReinforceSettings, AdapterRun):
    """The whole config of GRPO.

    Attributes:
        reward_models: Name -> a trained reward model; rewards refer to it by this name.
        xla_flags: Compiler flags, which launch/train.py and ds.train set.
    """

    data: QuestionData
    reward_models: dict[str, ModelRewardSettings] = dataclasses.field(default_factory=dict)
    xla_flags: str = unhashed("")

    def __post_init__(self):
        super().__post_init__()
        if self.general is not None and self.general.path is None:
            raise ValueError("general.path=None gives no questions; set it to a path of questions")
        if self.adapter is not None and self.reference_every is not None:
            raise ValueError(
                f"reference_every={self.reference_every} replaces the reference, which beside an adapter is "
                "the frozen policy itself; leave out one of them"
            )
        if self.effort is not None:
            self._check_penalty(self.effort)
        if self.adapter is not None:
            self.check_not_stored("beside an adapter the frozen policy is the reference")
        self.check_conversation(self.rollout.longest(), "rollout.max_completion_length")

    def _check_penalty(self, effort: EffortSettings):
        blocks = {"rewards": self.rewards}
        if self.general is not None:
            blocks["general.rewards"] = self.general.rewards
        for field, weights in blocks.items():
            # The rewards of reward models have no such limit
            if not set(weights) & set(self.reward_models):
                effort.check_against(weights, field)
            if LENGTH_PENALTY in weights:
                raise ValueError(
                    f"{field}.{LENGTH_PENALTY}={weights[LENGTH_PENALTY]} has the name of effort's own part "
                    "of the reward; choose another for that reward model"
                )
