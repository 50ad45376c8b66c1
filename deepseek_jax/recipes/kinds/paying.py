"""The programs of the reward models and judges that pay a run, for a plan."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.reward_params import ABOUT
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import REWARD, Held, Program, beside, forward_work
from deepseek_jax.data.batches import abstract_batch
from deepseek_jax.errors import at
from deepseek_jax.files import read_json
from deepseek_jax.models import ModelConfig
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
from deepseek_jax.rollout.programs import Asked, rollout_programs


class Paid(Source):
    """Rewards, and the reward models and judges among them."""

    def models(self, folder: Path | None = None) -> dict[str, ModelRewardSettings]:
        """NAME -> settings of the reward models and judges. folder: of the run; None in a plan."""
        return {}

    def planned(self, config: ModelConfig) -> dict[str, "PlannedReward"]:
        """planned_rewards of its models. config: of the policy that they score."""
        with at("config"):
            return planned_rewards(self.models(), config)


def beside_models(
    programs: list[Program], waiting: Sequence[Paid], config: ModelConfig, mesh: Mesh
) -> list[Program]:
    """The programs, while the reward models of rewards that wait lie on the devices too."""
    held = [model for paid in waiting for model in held_models(paid.planned(config), mesh)]
    return beside(programs, *held)


class PlannedReward(NamedTuple):
    """A reward model in use, or, where settings have a max_completion_length, a judge.

    config: its ModelConfig. quantized: whether its decoder is in int8, beside an adapter.
    """

    config: ModelConfig
    settings: ModelRewardSettings
    quantized: bool = False

    @property
    def judges(self):
        """Whether it is a judge."""
        return self.settings.max_completion_length is not None

    def params(self, mesh: Mesh):
        """Its parameters as ShapeDtypeStructs on the mesh, without the thin matrices of an adapter."""
        decoder = abstract_tree(self.config, mesh, self.settings.dtype)
        if self.judges:
            return decoder
        decoder = abstract_quantized(decoder) if self.quantized else decoder
        return {"decoder": decoder, "head": abstract_head(self.config, mesh)}


class Scored(NamedTuple):
    """What is scored at once: the number of completions; tokens of the longest prompt and completion."""

    completions: int
    prompt_length: int
    completion_length: int


def planned_rewards(settings: dict[str, ModelRewardSettings], policy: ModelConfig):
    """{NAME: PlannedReward} of config.reward_models: of the architecture in its folder or, while that is not
    there, of the policy's.
    """
    found = {}
    for name, block in settings.items():
        with at("reward_models"), at(name):
            found[name] = _planned(block, policy)
    return found


def _planned(block: ModelRewardSettings, policy: ModelConfig):
    folder, config, is_int8 = left_in_run(block.path), policy, False
    if (folder / JUDGE).is_file():
        length = judge_length(block, read_json(folder / JUDGE))
        config = read_any_config(folder)
        block = dataclasses.replace(block, max_completion_length=length)
    elif (folder / ABOUT).is_file():
        about = read_json(folder / ABOUT)
        # With an adapter the decoder is that of another checkpoint
        config = read_any_config(about.get("base") or folder / "decoder")
        is_int8 = about.get("quantize") is not None
    return planned_reward(config, block, policy.expert_buffer, is_int8)


def planned_reward(
    config: ModelConfig,
    settings: ModelRewardSettings,
    expert_buffer: float | None,
    quantized: bool = False,
):
    """The PlannedReward of a model's own ModelConfig, or of that of the policy that it started from.
    expert_buffer: of the run.
    """
    judges = settings.max_completion_length is not None
    own = computed_in(config if judges else reward_config(config), settings.dtype, expert_buffer)
    return PlannedReward(own, settings, quantized)


def held_models(models: dict[str, PlannedReward], mesh: Mesh):
    """The Held of each reward model, which is on the devices for the whole run."""
    return [_held(name, model, mesh) for name, model in models.items()]


def _held(name, model, mesh):
    fields = f"reward_models.{name}.dtype='bfloat16'"
    return Held(f"reward model {name}", model.params(mesh), fields)


def scoring_programs(
    prefix: str, models: dict[str, PlannedReward], scored: Scored, mesh: Mesh
) -> list[Program]:
    """The programs in which the models score completions, each beside the other models: of a reward model
    "NAME: score", of a judge those of its rollout.

    Every text counts as the longest. A judge reads two of them, the second for the reference.
    """
    planned = []
    for name, model in models.items():
        with at("reward_models"), at(name):
            check_split(model.settings, mesh, model.judges)
        programs = (_verdicts if model.judges else _scores)(
            f"{prefix}{name}: ", model, scored, mesh
        )
        others = {other: its for other, its in models.items() if other != name}
        planned += beside(programs, *held_models(others, mesh))
    return planned


def _scores(name, model, scored, mesh):
    config, rows = model.config, model.settings.batch_size
    longest = scored.prompt_length + scored.completion_length
    length = padded_length(min(longest, config.max_position_embeddings))
    batch = abstract_batch(mesh, right_padded([[0] * length], length), rows)
    # The head of a policy's config is not there
    amount = forward_work(config, rows, length, logits=0)
    times = -(-scored.completions // rows)
    function, arguments = jitted_rewards(config, mesh), (model.params(mesh), batch)
    return [Program(f"{name}score", function, arguments, mesh, *amount, part=REWARD, times=times)]


def _verdicts(name, model, scored, mesh):
    options = judge_options(model.settings.max_completion_length, model.settings.batch_size)
    room = model.config.max_position_embeddings - options.max_completion_length
    length = min(scored.prompt_length + 2 * scored.completion_length, room)
    asked = Asked(scored.completions, length)
    return rollout_programs(
        model.config, mesh, options, asked, dtype=model.settings.dtype, name=name
    )
