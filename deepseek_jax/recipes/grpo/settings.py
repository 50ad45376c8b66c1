"""What a GRPO config may say: each block a dataclass, checked when built."""

import dataclasses

from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.start import check_one_start
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.worlds.arithmetic.corpus import PROMPT_TEMPLATE


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The questions: task names a small world's; path, a jsonl file in GSM8K's format, takes its place.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat.
    """

    task: str = "arithmetic"
    path: str | None = None
    template: str = PROMPT_TEMPLATE
    num_held_out: int = 256

    def __post_init__(self):
        if self.num_held_out < 2:
            raise ValueError(
                f"config.data.num_held_out={self.num_held_out}: an interval needs at least 2 answers"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoSettings(ReinforceSettings):
    """A whole config of this recipe. reward_models: trained ones, as reward_model_settings says, for rewards
    of their names. xla_flags: the compiler's, which launch/train.py sets.
    """

    recipe: str
    data: DataSettings
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    reward_models: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: BaseSettings | None = None
    xla_flags: str = ""

    def __post_init__(self):
        self.check("config")
        if self.general is not None and self.general.path is None:
            raise ValueError(
                "config.general lacks questions; set config.general.path to a jsonl file"
            )
        check_one_start(self)
        if self.base is not None:
            self.base.check_numbers("config.base")
