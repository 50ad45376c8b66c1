"""Settings of data generation: each block of its config is a dataclass, checked when built.

Tests: tests/synthesis/test_sift.py, tests/recipes/generate/test_run.py.
"""

import dataclasses

from typing_extensions import override

from deepseek_jax.errors import at, suggest
from deepseek_jax.recipes.settings import PolicyRun
from deepseek_jax.reinforce.settings import ModelRewardSettings, RewardSettings
from deepseek_jax.rollout.settings import Conversing, check_together
from deepseek_jax.synthesis.settings import (
    TOTAL,
    AskSettings,
    AugmentSettings,
    KeepSettings,
    QuestionSettings,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings(Conversing, AskSettings, RewardSettings, PolicyRun):
    """The whole config of data generation.

    Attributes:
        mesh: The mesh over the devices of one teacher's processes.
        adapter: The folder of an adapter of init_from.
        tools, environment, conversation: For the samples, which are then conversations, see
            Conversing. The teacher varies questions without them.
    """

    data: QuestionSettings
    keep: KeepSettings
    augment: AugmentSettings = AugmentSettings()
    reward_models: dict[str, ModelRewardSettings] = dataclasses.field(default_factory=dict)
    adapter: str | None = None

    @override
    def trains_whole(self):
        # The teacher is not trained
        return False

    def __post_init__(self):
        super().__post_init__()
        if self.adapter is not None and self.init_from is None:
            raise ValueError(
                f"adapter={self.adapter!r} belongs to a checkpoint, and init_from=None; set init_from"
            )
        longest = self.sampling.max_completion_length
        self.check_conversation(longest, "sampling.max_completion_length")
        with at("sampling"):
            check_together(drafts=self.sampling.speculative, turns=self.converses)
        for name, least in self.keep.at_least.items():
            if name not in (*self.rewards, TOTAL):
                raise ValueError(
                    f"keep.at_least.{name}={least} is not of a reward; "
                    f"{suggest(name, (*self.rewards, TOTAL))}"
                )
        if "held_out" in self.keep.decontaminate and self.data.task is None:
            raise ValueError(
                f"keep.decontaminate={self.keep.decontaminate}: only data.task has held_out questions; name "
                "the files or folders of the evaluation sets"
            )
