"""Stages that measure a policy on what is held out, and the programs of answers."""

import dataclasses

from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, beside, policy_params
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.kinds.paying import Paid, Scored, beside_models, scoring_programs
from deepseek_jax.recipes.stage import SCORES, Answering, Stage
from deepseek_jax.rollout.programs import Asked, rollout_programs

# Tokens of the longest prompt where only the data say: a config limits the prompts of reinforcement alone
PROMPT_LENGTH = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Measure(Stage):
    """A measurement of the policy that it begins from. Each recipe has its own."""

    leaves_policy = False
    measures = True

    def is_left(self, folder):
        return (folder / SCORES).exists()

    def waiting(self, number: int | None = None):
        """A context that says what one waits for. number: of the questions."""
        what = "" if number is None else f": {number:,} questions"
        return waiting_for(f"measuring {self.name}{what}")


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


def scored_answer_programs(
    stage: Stage,
    config: ModelConfig,
    mesh: Mesh,
    asked: Answering,
    paid: Paid | None = None,
    scores: bool = False,
) -> list[Program]:
    """The programs of a stage's answers. paid: whose models lie on the devices beside them; scores: and score
    them.
    """
    answers = answer_programs(stage.prefix, config, mesh, asked, stage.adapter)
    answers = beside_models(answers, () if paid is None else (paid,), config, mesh)
    if paid is None or not scores:
        return answers
    longest = asked.options.max_completion_length
    scored = Scored(asked.prompts * asked.n, _longest_prompt(asked), longest)
    params = policy_params(abstract_tree(config, mesh, asked.dtype, stage.adapter))
    return [
        *answers,
        *beside(scoring_programs(stage.prefix, paid.planned(config), scored, mesh), params),
    ]
