"""The programs of a judge, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig
from deepseek_jax.recipes.planning import (
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_policy,
)
from deepseek_jax.recipes.reward_model.settings import JudgeSettings, JudgeTrainingSettings
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.model_rewards import judge_options


def programs(settings: JudgeSettings, mesh: Mesh):
    """The base's update, that of the judge, and its verdicts: [Program]."""
    config = planned_policy(settings)
    with at("config"):
        check_slots(settings, mesh)
        return [
            *base_programs(config, settings.base, mesh),
            *training_programs("", settings, config, mesh),
        ]


def training_programs(name: str, settings: JudgeTrainingSettings, config: ModelConfig, mesh: Mesh):
    """The update of a judge that starts from a policy of config, and its verdicts."""
    update = fine_tuning_programs(name, settings, config, mesh)[:1]
    options = judge_options(settings.max_completion_length, settings.slots)
    # Both orders of each held-out pair are judged
    sizes = dict(prompts=2 * settings.data.num_held_out, prompt_length=settings.sequence_length)
    return update + answer_programs(f"{name}verdicts: ", config, mesh, options, **sizes)
