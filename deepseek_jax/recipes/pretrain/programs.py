"""The programs of pre-training, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.errors import at
from deepseek_jax.models import build_model, names_architecture
from deepseek_jax.recipes.planning import stage_program
from deepseek_jax.recipes.pretrain.settings import PretrainSettings


def programs(settings: PretrainSettings, mesh: Mesh):
    """The update of each stage, at its largest batch: [Program].

    Raises the ValueErrors of a run, except that rope_scaling may start from random parameters.
    """
    with at("config"):
        if settings.init_from is None or names_architecture(settings.model):
            model = build_model(settings.model)
        else:
            model = settings.overridden(read_config(settings.init_from))
        stages = settings.checked_stages(model, mesh)
    return [
        stage_program(name, scaled, stage, mesh)
        for (name, stage), scaled in zip(stages, settings.models(model), strict=True)
    ]
