"""The sources of data generation: questions, evaluation sets and rewards.

Tests: tests/recipes/generate/test_run.py.
"""

import dataclasses
import functools

from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.data.questions import distinct, evaluation_texts, read_questions, solution_of
from deepseek_jax.errors import at
from deepseek_jax.named_code import code_digests
from deepseek_jax.parallel.mesh import group_mesh
from deepseek_jax.recipes.conversing import (
    open_environments,
    rewards_of,
)
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.origin import digest
from deepseek_jax.recipes.stage import Context, Source
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.worlds.registry import find_questions, open_rewards


@dataclasses.dataclass(frozen=True, eq=False)
class AskedQuestions(Source):
    """The questions of config.data, and the held-out questions of its task."""

    settings: GenerateSettings

    @functools.cached_property
    def both(self) -> tuple[list[dict], list[dict]]:
        """The pair (questions to ask, held-out questions)."""
        with at("config"):
            return _questions(self.settings)

    @override
    def covers(self, context):
        adapter = self.settings.adapter
        return [self.both[0], None if adapter is None else digest(adapter)]

    @override
    def describe(self, context):
        questions, _ = self.both
        return f"{len(questions)} questions, such as {questions[0]['question']!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredOn(Source):
    """The evaluation sets that config.keep.decontaminate names."""

    settings: GenerateSettings
    questions: AskedQuestions

    @functools.cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """The pair (questions, solutions) of all these sets."""
        with at("config"):
            return _measured_on(self.settings, self.questions.both[1])

    @override
    def covers(self, context):
        return [self.texts, self.settings.keep.ngram]

    @override
    def describe(self, context):
        return f"{len(self.texts[0])} questions of evaluations that they must not contain"

    @override
    def check(self, context):
        # Raises if a set is missing
        self.evaluation()

    def evaluation(self) -> Evaluation | None:
        """Return the synthesis.ngrams.Evaluation of these sets; None if they have no texts."""
        return Evaluation(*self.texts, self.settings.keep.ngram) if any(self.texts) else None


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRewards(RewardSource):
    """The rewards that score the samples, with reward models; they stay open for the whole run."""

    settings: GenerateSettings

    @override
    def models(self, folder=None):
        return self.settings.reward_models

    @override
    def covers(self, context):
        settings = self.settings
        path_digests = {name: digest(block.path) for name, block in settings.reward_models.items()}
        conversation_settings = [*settings.tools, settings.environment, settings.conversation]
        return [
            settings.rewards,
            settings.reward_models,
            path_digests,
            code_digests(settings),
            conversation_settings,
        ]

    def environments(self, context: Context):
        """Return the Environments of the samples; None for single turns."""
        return context.once(
            "environments", lambda: open_environments(self.settings, context.opened)
        )

    def read(self, context: Context) -> Rewards:
        """Return the Rewards, with models on the devices of the teacher."""
        return context.once(self, lambda: self._open(context))

    def _open(self, context):
        settings = self.settings
        with at("config"), at("reward_models"):
            buffer = settings.model.get("expert_buffer")
            models = load_model_rewards(settings.reward_models, own_mesh(settings, context), buffer)
        models |= rewards_of(self.environments(context))
        with at("config"), at("rewards"):
            return context.opened.enter_context(open_rewards(settings.rewards, models=models))


def own_mesh(settings: GenerateSettings, context: Context) -> Mesh:
    """Return the mesh of this process's group of processes; a group has one teacher.

    Raises:
        ValueError: As group_mesh does.
    """
    with at("config"), at("teacher_processes"):
        return group_mesh(context.mesh, settings.teacher_processes)


def _questions(settings: GenerateSettings):
    """Return (questions to ask, held-out questions of config.data.task)."""
    data, held_out = settings.data, []
    with at("data"):
        if data.path is not None:
            questions = read_questions(data.path, data.split, data.columns)
        else:
            # QuestionSettings has either a path or a task
            assert data.task is not None
            _, task_questions = find_questions(data.task)
            has_environment = settings.environment is not None
            task = task_questions.task(settings.seed, data.num_held_out, has_environment)
            questions, held_out = distinct(task.train), task.held_out
    if data.num_prompts is not None and data.num_prompts > len(questions):
        raise ValueError(
            f"data.num_prompts={data.num_prompts} is above the {len(questions)} different questions; lower it"
        )
    return questions[: data.num_prompts], held_out


def _measured_on(settings: GenerateSettings, held_out: list):
    """Return (questions, solutions) of the evaluation sets of config.keep.decontaminate."""
    questions: list[str] = []
    solutions: list[str] = []
    for name in settings.keep.decontaminate:
        if name == "held_out":
            set_questions = [example["question"] for example in held_out]
            set_solutions = [solution_of(example) for example in held_out]
        else:
            with at("keep.decontaminate", "path"):
                set_questions, set_solutions = evaluation_texts(name)
        questions, solutions = questions + set_questions, solutions + set_solutions
    return questions, solutions
