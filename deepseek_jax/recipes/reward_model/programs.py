"""The programs of a reward model, for a plan."""

import functools

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, update_program
from deepseek_jax.errors import at
from deepseek_jax.losses.preference import batch_rewards
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapters import AdapterSettings
from deepseek_jax.models.reward import abstract_head, reward_config
from deepseek_jax.recipes.planning import base_programs, planned_policy
from deepseek_jax.recipes.reward_model.data import abstract_batch_of
from deepseek_jax.recipes.reward_model.run import reward_flops, reward_model_loss
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings, RewardTrainingSettings
from deepseek_jax.recipes.start import check_rows
from deepseek_jax.training.loop import jitted_fit


def programs(settings: RewardModelSettings, mesh: Mesh):
    """The base's update, that of the reward model, and its held-out scores: [Program]."""
    config = planned_policy(settings)
    with at("config"):
        return [
            *base_programs(config, settings.base, mesh),
            *training_programs("", settings, config, mesh, settings.adapter),
        ]


def training_programs(
    name: str,
    settings: RewardTrainingSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
):
    """The update of a reward model that starts from a policy of config, and its scores: [Program]."""
    check_rows(settings, mesh, config.pipeline_micro_batches)
    model = reward_config(config)
    decoder = abstract_tree(model, mesh, adapter=adapter)
    params = {"decoder": decoder, "head": abstract_head(model, mesh)}
    batch = abstract_batch_of(settings, mesh)
    responses, length = batch["tokens"].shape[1:]
    tokens, rows = batch["tokens"].size, settings.batch_size * responses
    forward = tokens * reward_flops(model, length) / 3
    work = dict(tokens=tokens, sizes=f"{rows:,} rows x {length:,}")
    create, step = jitted_fit(settings, reward_model_loss(model), params, mesh)
    needed = tokens * reward_flops(model, length, frozen=adapter is not None)
    state, of_update = create.eval_shape(params), work | dict(flops=needed)
    update = update_program(
        f"{name}update", step, state, batch, config=model, mesh=mesh, **of_update
    )
    score = jax.jit(functools.partial(batch_rewards, model))
    return [update, Program(f"{name}scores", score, (params, batch), mesh, flops=forward, **work)]
