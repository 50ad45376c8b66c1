"""The programs of an evaluation, for a plan."""

import dataclasses

from jax.sharding import Mesh

from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.data.tokenizer import checkpoint_path
from deepseek_jax.errors import at
from deepseek_jax.recipes.evaluate.settings import MAX_COMPLETION_LENGTH, EvaluateSettings
from deepseek_jax.recipes.planning import PROMPT_LENGTH, answer_programs
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.rollout.policy import AnswerOptions


def programs(settings: EvaluateSettings, mesh: Mesh):
    """The answers to the problems between two saves: [Program]. Of the checkpoint its config has to be there,
    which names the architecture. An adapter is left out.
    """
    with at("config"):
        check_slots(settings, mesh)
        with at("checkpoint"):
            config = read_any_config(checkpoint_path(settings.checkpoint))
    config = dataclasses.replace(config, dtype=settings.dtype)
    longest = settings.max_completion_length
    if longest is None:
        # As in a run, where the prompts are known
        room = config.max_position_embeddings - PROMPT_LENGTH
        longest = max(1, min(MAX_COMPLETION_LENGTH, room))
    options = AnswerOptions(max_completion_length=longest, slots=settings.slots)
    sizes = dict(prompts=settings.save_every, n=settings.samples, dtype=settings.dtype)
    return answer_programs("answers: ", config, mesh, options, **sizes)
