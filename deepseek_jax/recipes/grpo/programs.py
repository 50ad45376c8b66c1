"""The programs of GRPO, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.costs.program import beside
from deepseek_jax.errors import at
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.planning import answer_programs, base_programs, planned_policy
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.model_reward_programs import held_models, planned_rewards
from deepseek_jax.reinforce.programs import reinforcement_programs


def programs(settings: GrpoSettings, mesh: Mesh):
    """The base's update, a step of reinforcement, and the held-out answers: [Program]."""
    config = planned_policy(settings)
    with at("config"):
        check_slots(settings, mesh)
        paying = planned_rewards(settings.reward_models, config)
        models = held_models(paying, mesh)
        step = [
            *beside(base_programs(config, settings.base, mesh), *models),
            *reinforcement_programs("", settings, config, mesh, settings.adapter, paying),
        ]
    options, limit = settings.rollout.at(settings.num_steps), settings.rollout.max_prompt_length
    sizes = dict(prompts=settings.data.num_held_out, prompt_length=limit)
    sizes["adapter"] = settings.adapter
    answers = answer_programs("answers: ", config, mesh, options, **sizes)
    return step + beside(answers, *models)
