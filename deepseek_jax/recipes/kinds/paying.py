"""Plan the programs and the memory of reward models and judges."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.reward_params import ABOUT
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import REWARD, Amount, Program, ResidentArrays, beside, forward_work
from deepseek_jax.data.batches import abstract_batch
from deepseek_jax.errors import at
from deepseek_jax.files import read_json
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network_config import Network, require_model_config
from deepseek_jax.models.quantized import abstract_quantized
from deepseek_jax.models.reward import abstract_head, reward_config
from deepseek_jax.recipes.stage import Source
from deepseek_jax.reinforce.model_rewards import (
    JUDGE,
    check_split,
    computed_in,
    judge_length,
    judge_options,
)
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards.model import jitted_rewards, padded_length, right_padded
from deepseek_jax.rollout.programs import Workload, rollout_programs


class RewardSource(Source):
    """Rewards, with the reward models and judges among them."""

    def models(self, folder: Path | None = None) -> dict[str, ModelRewardSettings]:
        """Return {NAME: settings} of the reward models and judges.

        Args:
            folder: The folder of the run; None in a plan.
        """
        return {}

    def planned(self, config: Network) -> dict[str, "PlannedReward"]:
        """Return {NAME: PlannedReward} of the reward models and judges.

        Args:
            config: The ModelConfig of the policy that they score.
        """
        with at("config"):
            return planned_rewards(self.models(), config)


def beside_models(
    programs: list[Program], waiting: Sequence[RewardSource], config: Network, mesh: Mesh
) -> list[Program]:
    """Return the programs, with reward models that are on the devices at the same time.

    Args:
        programs: The programs.
        waiting: The rewards with these models.
        config: The ModelConfig of the policy.
        mesh: The mesh of the run.
    """
    models = [model for rewards in waiting for model in held_models(rewards.planned(config), mesh)]
    return beside(programs, *models)


class PlannedReward(NamedTuple):
    """A reward model as a plan knows it, or a judge if settings has a max_completion_length.

    Attributes:
        config: The ModelConfig of the reward model.
        settings: Its settings.
        quantized: True if its decoder is in int8, with an adapter.
    """

    config: ModelConfig
    settings: ModelRewardSettings
    quantized: bool = False

    @property
    def judges(self) -> bool:
        """True for a judge."""
        return self.settings.max_completion_length is not None

    def params(self, mesh: Mesh):
        """Return the parameters as ShapeDtypeStructs on the mesh.

        The thin matrices of an adapter are left out.
        """
        decoder = abstract_tree(self.config, mesh, self.settings.dtype)
        if self.judges:
            return decoder
        decoder = abstract_quantized(decoder) if self.quantized else decoder
        return {"decoder": decoder, "head": abstract_head(self.config, mesh)}


class ScoredCompletions(NamedTuple):
    """What reward models score at once.

    Attributes:
        completions: The number of completions.
        prompt_length: Tokens of the longest prompt.
        completion_length: Tokens of the longest completion.
    """

    completions: int
    prompt_length: int
    completion_length: int


def planned_rewards(
    settings: dict[str, ModelRewardSettings], policy: Network
) -> dict[str, PlannedReward]:
    """Return {NAME: PlannedReward} of the config's block reward_models.

    Each has the architecture in its folder or, as long as there is none, the policy's.

    Args:
        settings: {NAME: settings}.
        policy: The ModelConfig of the policy that they score.
    """
    rewards = {}
    for name, block in settings.items():
        with at("reward_models"), at(name):
            rewards[name] = _planned(block, policy)
    return rewards


def _planned(block: ModelRewardSettings, policy: Network) -> PlannedReward:
    folder, config, is_int8 = left_in_run(block.path), policy, False
    if (folder / JUDGE).is_file():
        length = judge_length(block, read_json(folder / JUDGE))
        config = read_any_config(folder)
        block = dataclasses.replace(block, max_completion_length=length)
    elif (folder / ABOUT).is_file():
        saved_fields = read_json(folder / ABOUT)
        # With an adapter the decoder is in another checkpoint
        config = read_any_config(saved_fields.get("base") or folder / "decoder")
        is_int8 = saved_fields.get("quantize") is not None
    config = require_model_config(config, "a reward model")
    return planned_reward(config, block, policy.expert_buffer, is_int8)


def planned_reward(
    config: ModelConfig,
    settings: ModelRewardSettings,
    expert_buffer: float | None,
    quantized: bool = False,
) -> PlannedReward:
    """Return a PlannedReward.

    Args:
        config: The reward model's ModelConfig, or that of the policy that it started from.
        settings: The reward model's settings.
        expert_buffer: The run's expert_buffer.
        quantized: The field of PlannedReward.
    """
    is_judge = settings.max_completion_length is not None
    model_config = computed_in(
        config if is_judge else reward_config(config), settings.dtype, expert_buffer
    )
    return PlannedReward(model_config, settings, quantized)


def held_models(models: dict[str, PlannedReward], mesh: Mesh) -> list[ResidentArrays]:
    """Return a ResidentArrays for each reward model: its parameters are on the devices for the whole run."""
    return [_held(name, model, mesh) for name, model in models.items()]


def _held(name, model, mesh):
    memory_field = f"reward_models.{name}.dtype='bfloat16'"
    return ResidentArrays(f"reward model {name}", model.params(mesh), memory_field)


def scoring_programs(
    prefix: str, models: dict[str, PlannedReward], scored: ScoredCompletions, mesh: Mesh
) -> list[Program]:
    """Return the programs that score completions with reward models and judges.

    A reward model has the program "NAME: score", and a judge has the programs of its rollout. While
    one works, the others are on the devices too. Every text counts as the longest. A judge reads
    two texts: the completion, and the reference, which counts as a second completion.

    Args:
        prefix: The prefix of the programs' names.
        models: {NAME: PlannedReward}.
        scored: What they score.
        mesh: The mesh of the run.
    """
    all_programs = []
    for name, model in models.items():
        with at("reward_models"), at(name):
            check_split(model.settings, mesh, model.judges)
        programs = (_verdicts if model.judges else _scores)(
            f"{prefix}{name}: ", model, scored, mesh
        )
        other_models = {other: reward for other, reward in models.items() if other != name}
        programs = [dataclasses.replace(program, part=REWARD) for program in programs]
        all_programs += beside(programs, *held_models(other_models, mesh))
    return all_programs


def _scores(name, model, scored, mesh):
    config, rows = model.config, model.settings.batch_size
    text_length = scored.prompt_length + scored.completion_length
    row_length = padded_length(min(text_length, config.max_position_embeddings))
    batch = abstract_batch(mesh, right_padded([[0] * row_length], row_length), rows)
    # A reward model has no output head over the vocabulary
    amount: Amount = forward_work(config, rows, row_length, logits=0)
    times = -(-scored.completions // rows)
    function, arguments = jitted_rewards(config, mesh), (model.params(mesh), batch)
    return [Program(f"{name}score", function, arguments, mesh, *amount, times=times)]


def _verdicts(name, model, scored, mesh):
    options = judge_options(model.settings.max_completion_length, model.settings.batch_size)
    room = model.config.max_position_embeddings - options.max_completion_length
    length = min(scored.prompt_length + 2 * scored.completion_length, room)
    prompts = Workload(scored.completions, length)
    return rollout_programs(
        model.config, mesh, options, prompts, dtype=model.settings.dtype, name=name
    )
