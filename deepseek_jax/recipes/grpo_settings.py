"""What a GRPO config may say: each block a dataclass, checked when built."""

import dataclasses
from typing import Literal

from deepseek_jax.data.arithmetic import PROMPT_TEMPLATE
from deepseek_jax.data.tasks import arithmetic_task, word_arithmetic_task
from deepseek_jax.losses.grpo import NORMALIZES_STD
from deepseek_jax.recipes.blocks import OptimizerSettings
from deepseek_jax.recipes.pretrain_settings import BaseSettings
from deepseek_jax.recipes.settings import check_counts

TASKS = {"arithmetic": arithmetic_task, "word_arithmetic": word_arithmetic_task}


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


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Sampling. Questions whose prompt is longer than max_prompt_length are left out, and counted."""

    max_prompt_length: int
    max_completion_length: int
    temperature: float = 1.0
    slots: int = 32


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """See losses.grpo.grpo_loss. kl_coef 0 holds no reference."""

    loss_type: Literal[tuple(NORMALIZES_STD)] = "grpo"
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    kl_coef: float = 0.0
    importance_cap: float | None = None

    def __post_init__(self):
        for name in ("clip_eps", "clip_eps_high", "importance_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"config.loss.{name}={value} must be above 0")
        if not self.kl_coef >= 0:
            raise ValueError(f"config.loss.kl_coef={self.kl_coef} must be at least 0")


@dataclasses.dataclass(frozen=True)
class GrpoSettings:
    """A whole config of this recipe. accuracy: the reward that says whether an answer is right."""

    recipe: str
    seed: int
    num_steps: int
    prompts_per_step: int
    group_size: int
    accuracy: str
    rewards: dict
    data: DataSettings
    rollout: RolloutSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: BaseSettings | None = None
    minibatches: int = 1
    epochs: int = 1
    micro_batches: int = 1
    max_sampling_rounds: int = 1
    save_every: int = 20
    log_every: int = 1

    def __post_init__(self):
        for name, block in {"": self, ".rollout": self.rollout, ".base": self.base}.items():
            if block is not None:
                check_counts(block, f"config{name}")
        if self.accuracy not in self.rewards:
            raise ValueError(
                f"config.accuracy={self.accuracy!r} is none of config.rewards: {list(self.rewards)}"
            )
        if self.group_size < 2:
            raise ValueError(
                f"config.group_size={self.group_size}: a group compares at least 2 completions"
            )
        cuts = self.minibatches * self.micro_batches
        if self.prompts_per_step % cuts:
            raise ValueError(
                f"config.prompts_per_step={self.prompts_per_step} does not split into "
                f"minibatches={self.minibatches} x micro_batches={self.micro_batches} whole groups; "
                f"set it to a multiple of {cuts}"
            )
        if not self.rollout.temperature > 0:
            raise ValueError(
                f"config.rollout.temperature={self.rollout.temperature}: training samples, above 0"
            )
        if (self.init_from is None) == (self.base is None):
            raise ValueError(
                "set either config.init_from, a checkpoint, or config.base, how to pre-train one"
            )
        self.make_optimizer()  # for what it raises
        if self.base is not None:
            self.base.optimizer.make(self.base.num_steps, "config.base.optimizer")

    def make_optimizer(self):
        """The optax transformation of the whole reinforcement learning."""
        return self.optimizer.make(self.num_steps * self.minibatches * self.epochs)
