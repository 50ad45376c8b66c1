"""What a run starts from: a checkpoint, or a base that is pre-trained first."""

import dataclasses

from deepseek_jax.checkpoint import is_orbax
from deepseek_jax.errors import at
from deepseek_jax.models import RunSettings, build_model
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.pretrain.run import check_vocabulary, train_base
from deepseek_jax.rollout.policy import Policy, ending_turns, load_policy
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer


def starting_policy(settings, mesh, template):
    """The Policy that a run starts from: read from init_from; its params None where they are to be
    pre-trained.

    settings: has init_from, model and base. Raises ValueError for a base that this model or mesh cannot be.
    """
    if settings.init_from is not None:
        policy = _checkpoint(settings, mesh, template)
    else:
        policy = _base(settings, mesh, template)
    with at("data"):
        config = ending_turns(policy.config, policy.tokenizer, template)
    return dataclasses.replace(policy, config=config)


def _checkpoint(settings, mesh, template):
    if is_orbax(settings.init_from):
        raise ValueError(
            f"init_from={settings.init_from!r} holds parameters without a tokenizer; set it to the "
            "Hugging Face folder that launch/convert.py makes of them"
        )
    how = build(RunSettings, settings.model, "model")
    with at("init_from"):
        return load_policy(settings.init_from, how, mesh, template=template, trained=True)


def _base(settings, mesh, template):
    config, tokenizer = build_model(settings.model), named_tokenizer(settings.base.corpus)
    check_vocabulary(config, tokenizer)
    with at("base"):
        settings.base.check(config, mesh)
    return Policy(config, None, tokenizer, template)


def pretrained(policy, settings, run):
    """The policy with parameters: its own, or those of settings.base, pre-trained now."""
    if policy.params is not None:
        return policy
    params = train_base(
        policy.config, settings.base, policy.tokenizer, run.of("pretrain"), settings.seed
    )
    return policy.at(params)


def check_rows(settings, mesh, pipeline_micro_batches=None):
    """Raise ValueError, naming the fields, unless a step's rows split over the mesh."""
    sizes = settings.batch_size, settings.sequence_length
    cuts = dict(micro_batches=settings.micro_batches)
    cuts["pipeline_micro_batches"] = pipeline_micro_batches
    with at(f"batch_size={sizes[0]}, sequence_length={sizes[1]}"):
        check_batch(mesh, *sizes, **cuts)


def check_positions(settings, config):
    """Raise ValueError where a row of sequence_length tokens is longer than the model knows positions."""
    if settings.sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={config.max_position_embeddings}; lower it"
        )
