"""The programs of data generation, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import beside, policy_params
from deepseek_jax.errors import at
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.planning import answer_programs, base_programs, planned_policy
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.model_reward_programs import (
    Scored,
    held_models,
    planned_rewards,
    scoring_programs,
)


def programs(settings: GenerateSettings, mesh: Mesh):
    """The base's update, the answers of one teacher, on the devices of its processes, and what reward models
    and judges make of them there: [Program].
    """
    config, sampling = planned_policy(settings), settings.sampling
    own, samples = teacher_mesh(settings, mesh), sampling.samples_per_prompt
    scored = Scored(
        settings.chunk_size * samples, sampling.max_prompt_length, sampling.max_completion_length
    )
    with at("config"):
        check_slots(settings, own)
        paying = planned_rewards(settings.reward_models, config)
        paid = scoring_programs("samples: ", paying, scored, own)
    sizes = dict(prompts=settings.chunk_size, prompt_length=sampling.max_prompt_length)
    # A base is pre-trained in float32; a checkpoint is read in the dtype that it computes in
    dtype = "float32" if settings.init_from is None else config.dtype
    answers = answer_programs("samples: ", config, own, sampling, n=samples, dtype=dtype, **sizes)
    planned = [*base_programs(config, settings.base, mesh), *answers]
    params = policy_params(abstract_tree(config, own, dtype))
    return [*beside(planned, *held_models(paying, own)), *beside(paid, params)]


def teacher_mesh(settings: GenerateSettings, mesh: Mesh):
    """The mesh of the first teacher: parallel.mesh.group_mesh for devices that are not there."""
    if mesh.devices.flat[0].platform == "cpu":
        return mesh
    devices = [
        device
        for device in sorted(mesh.devices.flat, key=lambda device: device.id)
        if device.process_index < settings.teacher_processes
    ]
    sizes = {axis: size for axis, size in mesh.shape.items() if axis not in ("slice", "data")}
    return make_mesh(**sizes, devices=devices)
