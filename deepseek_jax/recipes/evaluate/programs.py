"""The programs of an evaluation, for a plan."""

from jax.sharding import Mesh

from deepseek_jax.errors import at
from deepseek_jax.recipes.evaluate.settings import MAX_COMPLETION_LENGTH, EvaluateSettings
from deepseek_jax.recipes.planning import PROMPT_LENGTH, answer_programs, planned_model
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.rollout.policy import AnswerOptions


def programs(settings: EvaluateSettings, mesh: Mesh):
    """The answers to the problems between two saves: [Program]. The checkpoint's config has to be there, and
    nothing else of it.
    """
    with at("config"):
        check_slots(settings, mesh)
        config = planned_model(dict(dtype=settings.dtype), settings.checkpoint)
    longest = settings.max_completion_length
    if longest is None:
        # As in a run, where the prompts are known
        room = config.max_position_embeddings - PROMPT_LENGTH
        longest = max(1, min(MAX_COMPLETION_LENGTH, room))
    options = AnswerOptions(max_completion_length=longest, slots=settings.slots)
    sizes = dict(prompts=settings.save_every, n=settings.samples, dtype=settings.dtype)
    return answer_programs("answers: ", config, mesh, options, **sizes)
