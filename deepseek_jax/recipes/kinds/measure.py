"""A stage that measures a policy on what is held out. What is asked and scored is the recipe's own."""

from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, beside, policy_params
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.job import PROMPT_LENGTH, SCORES, Work
from deepseek_jax.recipes.kinds.paying import (
    Scored,
    beside_models,
    planned_rewards,
    scoring_programs,
)
from deepseek_jax.recipes.stage import Answering, Kind
from deepseek_jax.rollout.programs import Asked, rollout_programs


def answer_programs(
    name: str,
    config: ModelConfig,
    mesh: Mesh,
    answering: Answering,
    adapter: AdapterSettings | None = None,
) -> list[Program]:
    """The programs that answer questions, where a model has room for their prompts. adapter: of
    checkpoint.tree.abstract_tree.
    """
    room = config.max_position_embeddings - answering.options.max_completion_length
    return rollout_programs(
        config,
        mesh,
        answering.options,
        Asked(
            answering.prompts,
            min(_longest_prompt(answering), room),
            answering.n,
            turns=answering.turns,
        ),
        name=name,
        dtype=answering.dtype,
        adapter=adapter,
    )


def _longest_prompt(answering):
    return PROMPT_LENGTH if answering.prompt_length is None else answering.prompt_length


def answering_programs(work: Work, asked: Answering) -> list[Program]:
    """The programs of a stage's answers, and, where reward models score them, what these make of them."""
    config, mesh = work.config, work.job.sampling_mesh()
    answers = answer_programs(work.prefix, config, mesh, asked, work.adapter)
    answers = beside_models(work, answers)
    if not asked.scored:
        return answers
    longest = asked.options.max_completion_length
    scored = Scored(asked.prompts * asked.n, _longest_prompt(asked), longest)
    params = policy_params(abstract_tree(config, mesh, asked.dtype, work.adapter))
    paying = planned_rewards(work.job.models(work), config)
    return [*answers, *beside(scoring_programs(work.prefix, paying, scored, mesh), params)]


def _check(work: Work):
    work.job.check_measured(work)


def _check_data(work: Work):
    work.job.check_measured_data(work)


def _covers(work: Work):
    return work.job.measured_inputs(work)


def _compiles(work: Work):
    asked = work.job.answering(work)
    return [] if asked is None else answering_programs(work, asked)


def _run(work: Work):
    """What the recipe's measure finds, as JSON can hold it."""
    count = work.job.count_measured(work)
    what = "" if count is None else f": {count:,} questions"
    with waiting_for(f"measuring {work.name}{what}"):
        return work.job.measure(work)


MEASURE = Kind(
    _check,
    _compiles,
    _run,
    _covers,
    _check_data,
    is_left=lambda folder: (folder / SCORES).exists(),
    is_policy=False,
    is_measure=True,
)
