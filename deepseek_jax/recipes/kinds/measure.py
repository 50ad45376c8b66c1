"""Stages that measure a policy on held-out data, and the programs that answer questions.

Tests: tests/recipes/test_driver.py, tests/recipes/test_programs.py.
"""

import dataclasses

from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, beside, policy_params
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.network_config import Network
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.kinds.paying import (
    RewardSource,
    ScoredCompletions,
    beside_models,
    scoring_programs,
)
from deepseek_jax.recipes.stage import SCORES, AnswerPlan, Stage
from deepseek_jax.rollout.programs import Workload, rollout_programs

# Tokens that a plan assumes for the longest prompt if only the data say: a config limits only the
# prompts of reinforcement
PROMPT_LENGTH = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Measure(Stage):
    """A measurement of the policy that it begins from. Each recipe defines its own subclass."""

    leaves_policy = False
    measures = True

    @override
    def is_left(self, folder):
        return (folder / SCORES).exists()

    def waiting(self, number: int | None = None):
        """Return a context that announces the measurement while it runs.

        Args:
            number: The number of questions.
        """
        suffix = "" if number is None else f": {number:,} questions"
        return waiting_for(f"measuring {self.name}{suffix}")


def answer_programs(
    name: str,
    config: Network,
    mesh: Mesh,
    answering: AnswerPlan,
    adapter: AdapterSettings | None = None,
) -> list[Program]:
    """Return the programs that answer questions.

    The longest prompt is cut to the room that the model has for it.

    Args:
        name: The prefix of the programs' names.
        config: The Network of the policy.
        mesh: The mesh of the run.
        answering: The answers.
        adapter: The argument of checkpoint.tree.abstract_tree.
    """
    room = config.max_position_embeddings - answering.options.max_completion_length
    return rollout_programs(
        config,
        mesh,
        answering.options,
        Workload(
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


def scored_answer_programs(
    stage: Stage,
    config: Network,
    mesh: Mesh,
    answer_plan: AnswerPlan,
    paid: RewardSource | None = None,
    scores: bool = False,
) -> list[Program]:
    """Return the programs of a stage's answers and, if `scores`, of their scores.

    Args:
        stage: The stage.
        config: The Network of its policy.
        mesh: The mesh of the run.
        answer_plan: The answers.
        paid: Rewards with models that are on the devices too; None for no models.
        scores: True if these models score the answers.
    """
    programs = answer_programs(stage.prefix, config, mesh, answer_plan, stage.adapter)
    programs = beside_models(programs, () if paid is None else (paid,), config, mesh)
    if paid is None or not scores:
        return programs
    completion_length = answer_plan.options.max_completion_length
    completions = ScoredCompletions(
        answer_plan.prompts * answer_plan.n, _longest_prompt(answer_plan), completion_length
    )
    params = policy_params(abstract_tree(config, mesh, answer_plan.dtype, stage.adapter))
    return [
        *programs,
        *beside(scoring_programs(stage.prefix, paid.planned(config), completions, mesh), params),
    ]
