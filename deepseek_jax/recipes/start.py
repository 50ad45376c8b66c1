"""What a run starts from: a checkpoint, or a base that is to be pre-trained first."""

from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.blocks import build_model, load_pretrained
from deepseek_jax.recipes.corpus import base_tokenizer


def starting_policy(settings, mesh):
    """(ModelConfig, params, Tokenizer): read from init_from; params None where they are to be pre-trained.

    settings: has init_from, model and base. Raises ValueError for a base that this model or mesh cannot be.
    """
    if settings.init_from is not None:
        return load_pretrained(settings.init_from, settings.model, mesh)
    policy, tokenizer = build_model(settings.model), base_tokenizer(settings.base)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
    settings.base.check("config.base", policy, mesh)
    return policy, None, tokenizer


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
        raise ValueError(f"config: {sizes}: {error}") from error


def check_positions(settings, policy):
    """Raise ValueError where a row of sequence_length tokens is longer than the model knows positions."""
    if settings.sequence_length > policy.max_position_embeddings:
        raise ValueError(
            f"config.sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={policy.max_position_embeddings}; lower it"
        )
