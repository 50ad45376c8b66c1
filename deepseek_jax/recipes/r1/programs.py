"""The programs of R1's stages, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig
from deepseek_jax.recipes.judge.programs import training_programs as judge_programs
from deepseek_jax.recipes.planning import (
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_policy,
)
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.recipes.reward_model.programs import training_programs as reward_programs
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.programs import reinforcement_programs


def programs(settings: R1Settings, mesh: Mesh):
    """The programs of every stage in its order, then those that measure it: [Program]."""
    config = planned_policy(settings)
    with at("config"):
        check_slots(settings, mesh)
        planned = base_programs(config, settings.base, mesh)
        planned += _reinforced("zero", settings, config, mesh)
        planned += _sampled("traces", settings, config, mesh)
        planned += _fine_tuned("cold_start", settings, config, mesh)
        planned += _reinforced("reasoning", settings, config, mesh)
        if settings.judge is not None:
            with at("judge"):
                planned += judge_programs("judge: ", settings.judge, config, mesh)
        planned += _sampled("rejection", settings, config, mesh)
        planned += _sampled("judged", settings, config, mesh)
        planned += _fine_tuned("sft", settings, config, mesh)
        for name in settings.reward_models():
            with at(name):
                planned += reward_programs(f"{name}: ", getattr(settings, name), config, mesh)
        planned += _reinforced("scenarios", settings, config, mesh)
    asked = settings.evaluation
    sizes = dict(prompts=max(asked.num_puzzles, asked.num_requests), n=asked.samples)
    return planned + answer_programs("evaluation: ", config, mesh, asked, **sizes)


def _reinforced(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    with at(name):
        return reinforcement_programs(f"{name}: ", getattr(settings, name), config, mesh)


def _fine_tuned(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    with at(name):
        return fine_tuning_programs(f"{name}: ", getattr(settings, name), config, mesh)


def _sampled(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    block = getattr(settings, name)
    if block is None:
        return []
    sizes = dict(prompts=block.num_prompts, n=block.samples_per_prompt)
    return answer_programs(f"{name}: ", config, mesh, block, **sizes)
