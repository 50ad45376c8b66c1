"""A stage of rejection sampling (arXiv:2501.12948, appendix B.3.3).

A policy answers questions, and the accepted answers become texts to learn from.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from typing_extensions import override

from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.named_code import digest_of
from deepseek_jax.recipes.kinds.measure import scored_answer_programs
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.kinds.tune import Texts
from deepseek_jax.recipes.stage import AnswerPlan, Context, Source, Stage
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rollout.policy import check_answers
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted
from deepseek_jax.synthesis.settings import RejectionSettings
from deepseek_jax.worlds.world import given_solution

# The accepted answers, in the stage's folder
FILE = "accepted.jsonl"


class Prompts(Source):
    """The questions that a policy answers."""

    def read(self, context: Context) -> list[dict]:
        """Return the examples, without their prompt_ids."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedJudge(RewardSource):
    """The judge that a stage has trained.

    Attributes:
        stage: The name of that stage.
        length: The most tokens of a judgement.
    """

    stage: str
    length: int

    @property
    @override
    def reads(self):
        return (self.stage,)

    @override
    def models(self, folder=None):
        path = "" if folder is None else str(folder / self.stage / "params")
        return {"judge": ModelRewardSettings(path, max_completion_length=self.length)}


@dataclasses.dataclass(frozen=True, eq=False)
class Rule(Source):
    """The reward that says whether an answer is right."""

    name: str

    @override
    def covers(self, context):
        return [self.name, digest_of(self.name)]


@dataclasses.dataclass(frozen=True, eq=False)
class Accept(Stage):
    """Rejection sampling: the policy that it begins from answers, and good answers are accepted.

    Attributes:
        prompts: The questions.
        rule: The reward that checks the answers.
        judge: For questions that no rule can check: it compares answers with the reference answers.
            None to use the rule.
        trained: The argument of Context.load.
    """

    leaves_policy = False

    settings: RejectionSettings
    prompts: Prompts
    rule: Rule
    judge: TrainedJudge | None = None
    trained: bool = True

    @override
    def is_left(self, folder):
        # sample_accepted writes the file whole, so a file that exists is complete
        return (folder / FILE).exists()

    @override
    def check(self, config, mesh):
        check_answers(config, self.settings)

    @override
    def check_data(self, context):
        super().check_data(context)
        self._fitting_questions(context)

    def _fitting_questions(self, context):
        examples = self.prompts.read(context)
        return context.policy.with_fitting_prompts(
            examples, Limit(self.settings.max_completion_length)
        )

    @override
    def programs(self, config, mesh, others):
        dtype = "float32" if self.trained else config.dtype
        num_prompts, num_samples = self.settings.num_prompts, self.settings.samples_per_prompt
        answering = AnswerPlan(self.settings, num_prompts, num_samples, dtype=dtype)
        return scored_answer_programs(self, config, mesh, answering, self.judge, scores=True)

    @override
    def run(self, context):
        models = {}
        if self.judge is not None:
            expert_buffer = context.policy.config.expert_buffer
            models = load_model_rewards(
                self.judge.models(context.folder), context.mesh, expert_buffer
            )
        with self.at():
            examples = self._fitting_questions(context)
            sample_accepted(
                self.settings,
                context.load(self.start, trained=self.trained),
                examples,
                context.stage_folder / FILE,
                rule=self.rule.name,
                seed=self.seed,
                judge=models.get("judge"),
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Accepted(Texts):
    """The answers that stages have accepted, as conversations to learn from."""

    stages: tuple[str, ...]

    @property
    @override
    def reads(self):
        return self.stages

    @override
    def read(self, context):
        return worked_conversations(accepted_by(context.folder, self.reads), given_solution)


def accepted_by(run: Path, names: Iterable[str]) -> list[dict]:
    """Return the examples that the stages `names` have accepted.

    Args:
        run: The folder of the run.
        names: The names of its stages.
    """
    return [example for name in names for example in read_accepted(run / name / FILE)]
