"""The programs of data generation, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.planning import answer_programs, base_programs, planned_policy
from deepseek_jax.recipes.start import check_slots


def programs(settings: GenerateSettings, mesh: Mesh):
    """The base's update, and the answers of one teacher, on the devices of its processes: [Program]."""
    config, sampling = planned_policy(settings), settings.sampling
    own = teacher_mesh(settings, mesh)
    check_slots(settings, own)
    sizes = dict(prompts=settings.chunk_size, prompt_length=sampling.max_prompt_length)
    # A base is pre-trained in float32; a checkpoint is read in the dtype that it computes in
    dtype = "float32" if settings.init_from is None else config.dtype
    return [
        *base_programs(config, settings.base, mesh),
        *answer_programs(
            "samples: ", config, own, sampling, n=sampling.samples_per_prompt, dtype=dtype, **sizes
        ),
    ]


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
