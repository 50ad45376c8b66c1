"""The programs of R1's stages, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import beside, policy_params
from deepseek_jax.distill.teacher_programs import taught_programs
from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig, how_to_run
from deepseek_jax.recipes.judge.programs import training_programs as judge_programs
from deepseek_jax.recipes.planning import (
    PROMPT_LENGTH,
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_model,
    planned_policy,
)
from deepseek_jax.recipes.r1.settings import SPECIALISTS, R1Settings, R1TeacherSettings
from deepseek_jax.recipes.reward_model.programs import training_programs as reward_programs
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.model_reward_programs import (
    Scored,
    held_models,
    planned_reward,
    scoring_programs,
)
from deepseek_jax.reinforce.model_rewards import ModelRewardSettings
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
        for name in ("scenarios", *SPECIALISTS):
            if getattr(settings, name) is not None:
                planned += _reinforced(name, settings, config, mesh)
        if settings.distilled is not None:
            planned += _distilled(settings, config, mesh)
    asked = settings.evaluation
    sizes = dict(prompts=max(asked.num_puzzles, asked.num_requests), n=asked.samples)
    return planned + answer_programs("evaluation: ", config, mesh, asked, **sizes)


def teacher_config(teacher: R1TeacherSettings, settings: R1Settings, student: ModelConfig):
    """The ModelConfig of a teacher. student: that of all stages."""
    if teacher.path is None:
        return student
    # Not the architecture, which the checkpoint has to have
    return planned_model(how_to_run(settings.model), teacher.path)


def _distilled(settings: R1Settings, config: ModelConfig, mesh: Mesh):
    with at("distilled"):
        teachers = {}
        for name, teacher in settings.distilled.teachers.items():
            with at(f"teachers.{name}"):
                teachers[name] = teacher_config(teacher, settings, config)
        return taught_programs("distilled: ", settings.distilled, config, teachers, mesh)


def _reinforced(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    # Each starts from a policy of this config, and is read with the default settings
    paying = {model: _reward(config) for model in settings.models_for(name)}
    with at(name):
        block = getattr(settings, name)
        return reinforcement_programs(f"{name}: ", block, config, mesh, paying=paying)


def _reward(config: ModelConfig, **fields):
    """The PlannedReward of a model that an earlier stage leaves."""
    return planned_reward(config, ModelRewardSettings(path="", **fields), config.expert_buffer)


def _fine_tuned(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    with at(name):
        return fine_tuning_programs(f"{name}: ", getattr(settings, name), config, mesh)


def _sampled(name: str, settings: R1Settings, config: ModelConfig, mesh: Mesh):
    block = getattr(settings, name)
    if block is None:
        return []
    sizes, judges = dict(prompts=block.num_prompts, n=block.samples_per_prompt), {}
    if name == "judged":
        length = settings.judge.max_completion_length
        judges["judge"] = _reward(config, max_completion_length=length)
    answers = answer_programs(f"{name}: ", config, mesh, block, **sizes)
    scored = Scored(
        block.num_prompts * block.samples_per_prompt, PROMPT_LENGTH, block.max_completion_length
    )
    with at(name):
        paid = scoring_programs(f"{name}: ", judges, scored, mesh)
    params = policy_params(abstract_tree(config, mesh))
    return [*beside(answers, *held_models(judges, mesh)), *beside(paid, params)]
