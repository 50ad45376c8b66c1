"""What a run starts from: a checkpoint, or a base that is to be pre-trained first."""

import dataclasses

from deepseek_jax.checkpoint import is_orbax, load_orbax
from deepseek_jax.data.conversations import end_of_turn
from deepseek_jax.errors import at
from deepseek_jax.models.config import RunSettings
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.blocks import build_model, load_pretrained
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import WORLDS, named_tokenizer


def starting_policy(settings, mesh):
    """(ModelConfig, params, Tokenizer): read from init_from; params None where they are to be pre-trained.

    settings: has init_from, model and base. Raises ValueError for a base that this model or mesh cannot be.
    """
    if settings.init_from is not None:
        return load_pretrained(settings.init_from, settings.model, mesh)
    policy, tokenizer = build_model(settings.model), named_tokenizer(settings.base.corpus)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
    with at("config.base"):
        settings.base.check(policy, mesh)
    return policy, None, tokenizer


def ending_turns(policy, tokenizer, template):
    """The ModelConfig with the token that ends an assistant's turn under this template among its eos_ids.

    A base's tokenizer ends documents, not turns: sampled after fine-tuning on a chat template, such a policy
    would go on behind its answer.
    """
    end_id = end_of_turn(tokenizer, template)
    if end_id in policy.eos_ids:
        return policy
    return dataclasses.replace(policy, eos_token_id=(*policy.eos_ids, end_id))


def check_rows(settings, mesh):
    """Raise ValueError, naming the fields, unless a step's rows split over the mesh."""
    try:
        check_batch(
            mesh,
            settings.batch_size,
            settings.sequence_length,
            micro_batches=settings.micro_batches,
            pipeline_micro_batches=settings.model.get("pipeline_micro_batches"),
        )
    except ValueError as error:
        sizes = f"batch_size={settings.batch_size}, sequence_length={settings.sequence_length}"
        raise ValueError(f"config.{sizes}: {error}") from error


def check_positions(settings, policy):
    """Raise ValueError where a row of sequence_length tokens is longer than the model knows positions."""
    if settings.sequence_length > policy.max_position_embeddings:
        raise ValueError(
            f"config.sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={policy.max_position_embeddings}; lower it"
        )


def load_policy(init_from, overrides, mesh, tokenizer=None):
    """(ModelConfig, params, Tokenizer) of a policy that is not trained: its weights in the dtype of overrides.

    init_from, overrides: as of blocks.load_pretrained; or what checkpoint.save_orbax wrote, whose tokenizer,
    a small world's name or a Hugging Face folder, must be given. Raises ValueError as load_pretrained does.
    """
    if not is_orbax(init_from):
        return load_pretrained(init_from, overrides, mesh, trained=False)
    if tokenizer is None:
        raise ValueError(
            f"init_from={init_from!r} has no tokenizer with it; set tokenizer to one of "
            f"{list(WORLDS)}, or to a Hugging Face folder"
        )
    how = build(RunSettings, overrides, "model")
    config, params = load_orbax(init_from, dtype=how.dtype, mesh=mesh)
    config = dataclasses.replace(config, **dataclasses.asdict(how))
    return config, params, named_tokenizer(tokenizer)
