"""What a GRPO config may say: each block a dataclass, checked when built."""

import dataclasses
from typing import Literal

from deepseek_jax.losses.grpo import NORMALIZES_STD
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import check_counts
from deepseek_jax.training.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Sampling. Questions whose prompt is longer than max_prompt_length are left out, and counted.

    max_completion_length, temperature: a number, or pairs (step, number), each of which holds from its step
    on, as R1-Zero's limit of 32,768 tokens that became 65,536 (arXiv:2501.12948, section 2).
    """

    max_prompt_length: int
    max_completion_length: int | tuple[tuple[int, int], ...]
    temperature: float | tuple[tuple[int, float], ...] = 1.0
    slots: int = 32

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for a number out of its range."""
        check_counts(self, path)
        for name in ("max_completion_length", "temperature"):
            steps = [step for step, _ in _pairs(getattr(self, name))]
            if not steps or steps[0] != 0 or steps != sorted(set(steps)):
                raise ValueError(
                    f"{path}.{name}={getattr(self, name)}: pairs (step, number) begin with step 0, and each "
                    "step is later than the one before"
                )
        for _, length in _pairs(self.max_completion_length):
            if length < 1:
                raise ValueError(f"{path}.max_completion_length={length} must be at least 1")
        for _, temperature in _pairs(self.temperature):
            if not temperature > 0:
                raise ValueError(f"{path}.temperature={temperature}: training samples, above 0")

    def at(self, step):
        """The AnswerOptions of a step."""
        return AnswerOptions(
            max_completion_length=_held(self.max_completion_length, step),
            temperature=_held(self.temperature, step),
            slots=self.slots,
        )

    def longest(self):
        """The most tokens of a completion at any step."""
        return max(length for _, length in _pairs(self.max_completion_length))

    def temperature_at(self, step):
        """The temperature of a step."""
        return _held(self.temperature, step)


def _pairs(given):
    return given if isinstance(given, tuple) else ((0, given),)


def _held(given, step):
    return [number for since, number in _pairs(given) if since <= step][-1]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralSettings:
    """Reinforcement for all scenarios (arXiv:2501.12948, section 3.2.2): in the last num_steps, per_step of a
    step's questions are general ones, paid by rewards of their own.

    path: the questions, as of data.questions.read_questions; None where a recipe has some itself.
    """

    num_steps: int
    per_step: int
    rewards: dict
    path: str | None = None

    def check(self, path, settings):
        """Raise ValueError, naming the field of the block `path`, for what does not go with settings."""
        check_counts(self, f"{path}.general")
        if self.num_steps > settings.num_steps:
            raise ValueError(
                f"{path}.general.num_steps={self.num_steps} is above {path}.num_steps={settings.num_steps}"
            )
        if self.per_step >= settings.prompts_per_step:
            raise ValueError(
                f"{path}.general.per_step={self.per_step} leaves no other questions of "
                f"{path}.prompts_per_step={settings.prompts_per_step}; lower it"
            )
        if settings.max_sampling_rounds > 1:
            raise ValueError(
                f"{path}.max_sampling_rounds={settings.max_sampling_rounds}: each step has its own share of "
                f"{path}.general, which further rounds would shift; leave it at 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceSettings:
    """The reinforcement itself, whatever policy it starts from.

    accuracy: the reward that says whether an answer is right. A step samples group_size completions of
    prompts_per_step questions, and makes minibatches x epochs updates of them. reference_every: steps after
    which the policy becomes the reference of the KL (arXiv:2501.12948, appendix A.3); None keeps the first.
    general: questions beside those of `rewards`, None for none.
    """

    num_steps: int
    prompts_per_step: int
    group_size: int
    accuracy: str
    rewards: dict
    rollout: RolloutSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    seed: int = 0
    minibatches: int = 1
    epochs: int = 1
    micro_batches: int = 1
    max_sampling_rounds: int = 1
    general: GeneralSettings | None = None
    reference_every: int | None = None
    save_every: int = 20
    log_every: int = 1

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for what does not go together."""
        check_counts(self, path)
        self.rollout.check(f"{path}.rollout")
        if self.accuracy not in self.rewards:
            raise ValueError(
                f"{path}.accuracy={self.accuracy!r} is none of {path}.rewards: {list(self.rewards)}"
            )
        if self.group_size < 2:
            raise ValueError(
                f"{path}.group_size={self.group_size}: a group compares at least 2 completions"
            )
        cuts = self.minibatches * self.micro_batches
        if self.prompts_per_step % cuts:
            raise ValueError(
                f"{path}.prompts_per_step={self.prompts_per_step} does not split into "
                f"minibatches={self.minibatches} x micro_batches={self.micro_batches} whole groups; "
                f"set it to a multiple of {cuts}"
            )
        if self.reference_every is not None and not self.loss.kl_coef:
            raise ValueError(
                f"{path}.reference_every={self.reference_every}, but {path}.loss.kl_coef=0 reads no "
                "reference; set it above 0, or leave reference_every out"
            )
        if self.general is not None:
            self.general.check(path, self)
        self.make_optimizer(path)  # for what it raises

    def make_optimizer(self, path="config"):
        """The optax transformation of the whole reinforcement learning."""
        updates = self.num_steps * self.minibatches * self.epochs
        return self.optimizer.make(updates, f"{path}.optimizer")
