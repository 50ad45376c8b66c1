"""The programs of supervised fine-tuning, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.errors import at
from deepseek_jax.recipes.planning import (
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_policy,
)
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.start import check_slots


def programs(settings: SftSettings, mesh: Mesh):
    """The base's update, that of fine-tuning, its held-out loss, and the answers: [Program]."""
    config, asked = planned_policy(settings), settings.answers.num_prompts
    with at("config"):
        check_slots(settings, mesh)
        trained = base_programs(config, settings.base, mesh)
        trained += fine_tuning_programs("", settings, config, mesh, settings.adapter)
    sizes = dict(prompts=asked, adapter=settings.adapter)
    return trained + answer_programs("answers: ", config, mesh, settings.answers, **sizes)
