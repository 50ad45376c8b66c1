"""The programs of supervised fine-tuning, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import beside, policy_params
from deepseek_jax.errors import at
from deepseek_jax.recipes.planning import (
    PROMPT_LENGTH,
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_policy,
)
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.model_reward_programs import (
    Scored,
    held_models,
    planned_rewards,
    scoring_programs,
)


def programs(settings: SftSettings, mesh: Mesh):
    """The base's update, that of fine-tuning, its held-out loss, the answers, and what reward models make of
    them: [Program].
    """
    config, asked = planned_policy(settings), settings.answers.num_prompts
    with at("config"):
        check_slots(settings, mesh)
        trained = base_programs(config, settings.base, mesh)
        trained += fine_tuning_programs("", settings, config, mesh, settings.adapter)
        paying = planned_rewards(settings.reward_models, config)
        length = settings.answers.max_completion_length
        paid = scoring_programs("answers: ", paying, Scored(asked, PROMPT_LENGTH, length), mesh)
    sizes = dict(prompts=asked, adapter=settings.adapter)
    answers = answer_programs("answers: ", config, mesh, settings.answers, **sizes)
    params = policy_params(abstract_tree(config, mesh, adapter=settings.adapter))
    return [*beside([*trained, *answers], *held_models(paying, mesh)), *beside(paid, params)]
