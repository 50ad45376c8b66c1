"""Settings of GRPO: each config block is a dataclass, checked when it is built."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from typing_extensions import override

from deepseek_jax.data.settings import OwnData
from deepseek_jax.losses.settings import GrpoOptions
from deepseek_jax.reinforce.degenerate import DegenerateSettings
from deepseek_jax.reinforce.effort import EffortSettings
from deepseek_jax.rewards.batch import LARGEST_REWARD
from deepseek_jax.rollout.settings import AnswerOptions, Limit
from deepseek_jax.settings import (
    Count,
    CountBySteps,
    Named,
    Natural,
    PositiveShare,
    Settings,
    Several,
    TemperatureBySteps,
    Weights,
    unhashed,
)
from deepseek_jax.training.schedule import number_at, pairs_of
from deepseek_jax.training.settings import FitSettings, check_evaluations

# The most attention scores of one head in a row of a prompt and its completions, 32 MiB in float32.
# Such a row has all its scores in memory at once
MOST_SHARED_SCORES = 2**23
# The most candidates that are kept for a token: 512 bytes a token
MOST_CANDIDATES = 128
# Held-out questions of a measurement on the way: few, because it is repeated. The 95% interval of
# their accuracy is up to 9 points wide on either side
MEASURED = 128
# The scenarios that a question may belong to
SCENARIOS = ("reasoning", "general")


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Settings of sampling.

    max_completion_length and temperature are a number, or pairs (step, number), each valid from its
    step on: R1-Zero raised its limit from 32,768 to 65,536 tokens (arXiv:2501.12948, section 2).

    top_p and top_k limit the candidates for each token. The rollout keeps these candidates. The
    update's and its reference's distributions are over the same candidates (keep sampling mask,
    arXiv:2512.02556, section 3.1).

    Attributes:
        max_completion_length: the most tokens of a completion.
        temperature: divides the logits.
        slots: completions that are sampled at once, over all devices.
        top_p: the share of probability that candidates cover.
        top_k: the most candidates; 0 for no limit.
        max_prompt_length: questions with a longer prompt are dropped and counted.
    """

    max_prompt_length: Count
    max_completion_length: CountBySteps
    temperature: TemperatureBySteps = 1.0
    slots: Count = 32
    top_p: PositiveShare = 1.0
    top_k: Natural = 0

    def __post_init__(self):
        if self.truncates() and not 0 < self.top_k <= MOST_CANDIDATES:
            raise ValueError(
                f"top_k={self.top_k} with top_p={self.top_p}: an update keeps at most {MOST_CANDIDATES} "
                f"candidates a token; set top_k to 1 to {MOST_CANDIDATES}, or to 0 with top_p=1"
            )

    def truncates(self) -> bool:
        """Return whether tokens are sampled from fewer than all."""
        return self.top_p < 1 or self.top_k > 0

    def at(self, step: int) -> AnswerOptions:
        """Return how a step samples."""
        return AnswerOptions(
            max_completion_length=number_at(self.max_completion_length, step),
            temperature=self.temperature_at(step),
            slots=self.slots,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def longest(self) -> int:
        """Return the most tokens of a completion at any step."""
        return max(length for _, length in pairs_of(self.max_completion_length))

    def limit(self) -> Limit:
        """Return the longest prompt and the longest completion of any step."""
        return Limit(self.longest(), self.max_prompt_length)

    def temperature_at(self, step: int) -> float:
        """Return the temperature of a step."""
        return number_at(self.temperature, step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralSettings(OwnData):
    """Settings of reinforcement for all scenarios (arXiv:2501.12948, section 3.2.2).

    In each of the last num_steps steps, per_step questions are general ones, with their own
    rewards. path, split and columns say where the general questions are, for
    data.questions.read_questions. Without a path the recipe supplies them.

    Attributes:
        num_steps: the last steps, which ask general questions too.
        per_step: general questions of such a step.
        rewards: weights by name, for answers to general questions.
    """

    num_steps: Count
    per_step: Count
    rewards: Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings(Settings):
    """The rewards of a run, and which of them decides whether an answer is right.

    Attributes:
        accuracy: the deciding reward; None for the share (a reward from 0 to 1) with the largest
            weight, see scenarios.deciding.
        rewards: weights by name.
    """

    accuracy: Named | None = None
    rewards: Weights

    def needs_accuracy(self) -> bool:
        """Return whether accuracy, if it is set, has to be one of rewards."""
        return True

    def __post_init__(self):
        super().__post_init__()
        checks_accuracy = self.needs_accuracy() and self.accuracy is not None
        if checks_accuracy and self.accuracy not in self.rewards:
            raise ValueError(
                f"accuracy={self.accuracy!r} is not one of rewards: {', '.join(self.rewards)}; add it there, "
                "with a weight of 0 if it pays nothing"
            )


@dataclasses.dataclass(frozen=True)
class ModelRewardSettings:
    """Settings of a reward model or a judge that scores a run's completions.

    Attributes:
        path: the folder of a run of recipes.reward_model or recipes.judge, or params in it.
        batch_size: the rows that are scored, or the judgements that are sampled, at once.
        dtype: the dtype in which the parameters are read and the model computes.
        max_completion_length: for a judge only. The folder has it too, and a run accepts no other
            value. By this field a plan knows that a folder which does not exist yet will hold a
            judge.
    """

    path: str
    batch_size: Count = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_completion_length: Count | None = None


def scores_fit(rollout: RolloutSettings, group_size: int) -> bool:
    """Return whether a row of a prompt and its completions has few enough attention scores.

    The limit is MOST_SHARED_SCORES.
    """
    length = rollout.longest()
    return group_size * length * (rollout.max_prompt_length + length) <= MOST_SHARED_SCORES


def check_weights(rewards: Mapping[str, float], field: str):
    """Raise ValueError for weights that are all 0 or too large for advantages.

    Args:
        field: the config's name for the weights, for the message.
    """
    # If there are no rewards at all, the code that opens them raises the error
    if rewards and not any(rewards.values()):
        raise ValueError(f"{field}={dict(rewards)} pays nothing; set one of the weights above 0")
    for name, weight in rewards.items():
        if abs(weight) > LARGEST_REWARD:
            raise ValueError(f"{field}.{name}={weight} must be within +-{LARGEST_REWARD:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforceSettings(FitSettings, RewardSettings):
    """Settings of reinforcement by GRPO, from any policy.

    A step samples group_size completions of each of prompts_per_step questions, and makes
    minibatches x epochs updates.

    Attributes:
        prompts_per_step: questions of a step.
        group_size: completions of a question.
        rollout: how completions are sampled.
        loss: GRPO and its variants.
        minibatches: parts of a step's groups, with one update for each.
        epochs: passes over a step's groups.
        max_sampling_rounds: the most rounds of questions in a step, see groups.GroupSource.
        general: the settings of general questions; None asks only reasoning questions.
        reference_every: the number of steps after which the policy becomes the reference of the KL
            (arXiv:2501.12948, appendix A.3); None for a fixed reference.
        reference_dtype: the dtype in which the reference is stored.
        reference_memory: "host" keeps the reference in the host's memory while it does not score.
        degenerate: when steps without anything to learn end the run.
        kl_weights: scenario -> a factor of loss.kl_coef in its questions, 1 where a scenario is
            missing. The best KL differs by domain: weak or none for mathematics (arXiv:2512.02556,
            section 3.1).
        keep_routing: updates use the experts that the sampler chose, see rollout.kept. The
            reference uses its own.
        share_prompts: whether a prompt and all its completions are one row of an update, if their
            attention scores fit in memory. DeepSeek-V4 needs False: its compressed entries are of
            whole documents.
        effort: ask with several reasoning efforts, each with its own price of length; None does
            neither.
        kept_groups: the number of groups of a logged step that go to completions.jsonl, whole, see
            metrics.draw_groups; 0 for none.
        eval_every: steps between two measurements of held_out_accuracy, see GroupSource; 0 for
            none.
    """

    prompts_per_step: Count
    group_size: Several
    rollout: RolloutSettings
    loss: GrpoOptions
    minibatches: Count = 1
    epochs: Count = 1
    max_sampling_rounds: Count = 1
    general: GeneralSettings | None = None
    reference_every: Count | None = None
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    reference_memory: Literal["device", "host"] = "device"
    degenerate: DegenerateSettings = DegenerateSettings()
    kl_weights: Weights | None = None
    keep_routing: bool = False
    share_prompts: bool = True
    effort: EffortSettings | None = None
    kept_groups: Natural = unhashed(2)
    eval_every: Natural = unhashed(0)
    save_every: Count = unhashed(20)

    def __post_init__(self):
        super().__post_init__()
        # A cut must not run through a row, and a group that shares its prompt is one row
        cuts = self.minibatches * (self.micro_batches if self.shares_prompts() else 1)
        if self.prompts_per_step % cuts:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} does not split into "
                f"minibatches={self.minibatches} x micro_batches={self.micro_batches} whole groups; "
                f"set it to a multiple of {cuts}"
            )
        check_evaluations(self)
        if self.rows() % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches} does not divide the {self.rows()} completions of an "
                "update; set it to a divisor"
            )
        if self.reference_every is not None and not self.loss.kl_coef:
            raise ValueError(
                f"reference_every={self.reference_every}, but loss.kl_coef=0 reads no reference; set it "
                "above 0, or leave reference_every out"
            )
        if self.reference_every == 1 and self.minibatches * self.epochs == 1:
            raise ValueError(
                "reference_every=1 makes the policy its own reference at each update, where the KL is 0; set "
                "it above 1, or loss.kl_coef to 0"
            )
        check_weights(self.rewards, "rewards")
        if not self.loss.kl_coef:
            self.check_not_stored("loss.kl_coef=0 reads no reference (above 0 it does)")
        if self.general is not None:
            self._check_general(self.general)
        if self.keeps() and self.max_sampling_rounds > 1:
            raise ValueError(
                "keep_routing=True and rollout.top_k keep what one rollout a step chose; set "
                f"max_sampling_rounds={self.max_sampling_rounds} to 1, or keep nothing"
            )
        if self.kl_weights:
            self._check_kl_weights(self.kl_weights)

    def check_not_stored(self, why: str):
        """Raise ValueError if a field says how to store the reference, but none is stored.

        Args:
            why: the reason why no reference is stored, for the message.
        """
        for name in ("reference_dtype", "reference_memory"):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name}={value!r}, but {why}; leave {name} out")

    @override
    def continues(self) -> bool:
        # General questions come in the last steps
        return super().continues() and self.general is None

    def check_no_effort(self):
        """Raise ValueError if effort is set.

        For recipes that ask their questions without an effort.
        """
        if self.effort is not None:
            raise ValueError(
                f"effort.values={self.effort.values}: this recipe asks with no effort, and recipe='grpo' "
                "does; leave effort out"
            )

    def _check_kl_weights(self, weights: Mapping[str, float]):
        used_scenarios = SCENARIOS if self.general is not None else SCENARIOS[:1]
        for name, weight in weights.items():
            if name not in used_scenarios:
                raise ValueError(
                    f"kl_weights.{name}={weight} is for no question of this run, which asks "
                    f"{', '.join(used_scenarios)}; leave it out"
                )
            if weight < 0:
                raise ValueError(f"kl_weights.{name}={weight} must be at least 0")
        if not self.loss.kl_coef or all(weights.get(name) == 0 for name in used_scenarios):
            raise ValueError(
                f"kl_weights={dict(weights)} with loss.kl_coef={self.loss.kl_coef} has no KL; set "
                "loss.kl_coef and a weight above 0, or leave kl_weights out"
            )

    def _check_general(self, general: GeneralSettings):
        check_weights(general.rewards, "general.rewards")
        if general.num_steps > self.num_steps:
            raise ValueError(
                f"general.num_steps={general.num_steps} is above num_steps={self.num_steps}"
            )
        if general.per_step >= self.prompts_per_step:
            raise ValueError(
                f"general.per_step={general.per_step} leaves no other questions of "
                f"prompts_per_step={self.prompts_per_step}; lower it"
            )
        if self.max_sampling_rounds > 1:
            raise ValueError(
                f"max_sampling_rounds={self.max_sampling_rounds}: each step has its own share of general "
                "questions, which further rounds would shift; leave it at 1"
            )

    def scored(self) -> tuple[str, ...]:
        """Return the keys of the log-probabilities that are computed before a step's updates."""
        # A single update needs no old_logprobs: its policy is the one that sampled
        old_keys: tuple[str, ...] = ("old_logprobs",) if self.minibatches * self.epochs > 1 else ()
        return old_keys + (("ref_logprobs",) if self.loss.kl_coef else ())

    def num_efforts(self) -> int:
        """Return how many times each question is there: once for every effort."""
        return 1 if self.effort is None else len(self.effort.values)

    def prompts_measured(self) -> int:
        """Return the most prompts of a measurement on the way: MEASURED questions."""
        return MEASURED * self.num_efforts()

    def most_turns(self) -> int:
        """Return the most turns of the model in a conversation with tools or an environment.

        It is 0 for completions of a single turn.
        """
        return 0

    def keeps(self) -> bool:
        """Return whether updates use anything that the rollout kept, see rollout.kept."""
        return self.keep_routing or self.rollout.truncates()

    def shares_prompts(self) -> bool:
        """Return whether a prompt and all its completions are one row of an update.

        Otherwise each completion is a row of its own, see losses.completions. This is so for long
        completions, because the attention scores of the shared row would not fit in memory.
        """
        return self.share_prompts and scores_fit(self.rollout, self.group_size)

    def rows(self) -> int:
        """Return the number of rows of an update."""
        groups = self.prompts_per_step // self.minibatches
        return groups if self.shares_prompts() else groups * self.group_size

    def num_updates(self) -> int:
        """Return the number of updates in all steps."""
        return self.num_steps * self.minibatches * self.epochs
