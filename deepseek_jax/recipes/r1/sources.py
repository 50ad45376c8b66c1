"""Sources of R1's stages: questions and solutions from a world or from a user's data.

Tests: tests/recipes/r1/test_own_world.py, tests/recipes/r1/test_run.py.
"""

import dataclasses
import functools
from collections.abc import Mapping
from contextlib import nullcontext

from typing_extensions import override

from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.recipes.kinds.accept import Accepted, Prompts
from deepseek_jax.recipes.kinds.learn_from import TaskQuestions
from deepseek_jax.recipes.kinds.reinforce import Questions
from deepseek_jax.recipes.kinds.tune import Texts
from deepseek_jax.recipes.r1.settings import ConversationSettings, OwnDataSettings, R1Settings
from deepseek_jax.recipes.stage import Context, Source
from deepseek_jax.worlds.own import own_world
from deepseek_jax.worlds.registry import find_world
from deepseek_jax.worlds.world import World

KINDS = "reasoning", "general"


@dataclasses.dataclass(frozen=True, eq=False)
class WorldData:
    """The world of a run, and the run's split of its questions.

    Attributes:
        name: The name of the world.
        data: The user's own data in place of the world, or None.
        seed: The seed of the split.
        held_out: Kind -> the number of held-out questions.
    """

    name: str
    data: OwnDataSettings | None
    seed: int
    held_out: Mapping[str, int]

    @classmethod
    def of(cls, s: R1Settings) -> "WorldData":
        """Return the WorldData of a config."""
        held_out = {"reasoning": s.evaluation.num_puzzles, "general": s.evaluation.num_requests}
        return cls(s.world, s.data, s.seed, held_out)

    @functools.cached_property
    def world(self) -> World:
        """The World of config.world, or the World of the user's own data."""
        if self.data is None:
            return find_world(self.name)
        data = self.data
        return own_world(data.reasoning, data.rule, data.general, template=data.template)

    def of_kind(self, kind: str) -> str | None:
        """Return the name of the world's questions of a kind; None if it has none."""
        return self.world.reasoning if kind == "reasoning" else self.world.general

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """{kind: Task}; the Task is empty if the world has no questions of the kind."""
        with at("config"), nullcontext() if self.data is None else at("data"):
            return {kind: self._task(kind) for kind in KINDS}

    def _task(self, kind):
        name = self.of_kind(kind)
        if name is None:
            return Task([], [])
        return self.world.questions[name].task(self.seed, self.held_out[kind])

    def worked(self, kind: str, examples: list[dict]) -> list[dict]:
        """Return conversations in which the world's solutions answer examples of a kind."""
        name = self.of_kind(kind)
        if name is None or not examples:
            return []
        return worked_conversations(examples, self.world.questions[name].worked)

    def rule(self) -> str:
        """Return the reward that says whether an answer to a reasoning question is right."""
        rule = self.world.questions[self.world.reasoning].rule
        # The field `reasoning` names questions that a rule checks
        assert rule is not None
        return rule


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingQuestions(Questions, TaskQuestions):
    """The training questions of one or more kinds.

    Attributes:
        takes: Name of questions in Reinforce or LearnFrom -> the world's kind; None for no
            questions.
    """

    world_data: WorldData
    takes: Mapping[str, str | None]

    @override
    def covers(self, context):
        return self.read(context)

    @override
    def describe(self, context):
        number = len(self.world_data.tasks["reasoning"].train)
        return f"world {self.world_data.world.name}: {number} reasoning questions"

    @override
    def read(self, context):
        tasks = self.world_data.tasks
        return {name: tasks[kind].train if kind else [] for name, kind in self.takes.items()}

    @override
    def held_out(self, context):
        kind = self.takes["reasoning"]
        # Only a stage that learns from teachers takes questions by other names
        assert kind is not None
        return self.world_data.tasks[kind].held_out


def reinforcing(
    data: WorldData, *, general: bool = False, only: str | None = None
) -> TrainingQuestions:
    """Return the questions of a stage of reinforcement.

    Args:
        data: The world's questions.
        general: True to ask general questions too.
        only: The one kind of questions that a specialist is asked; None for reasoning questions.
    """
    return TrainingQuestions(
        data, {"reasoning": only or "reasoning", "general": "general" if general else None}
    )


@dataclasses.dataclass(frozen=True, eq=False)
class FirstQuestions(Prompts):
    """The first num_prompts reasoning questions, which a policy answers."""

    world_data: WorldData

    @override
    def covers(self, context):
        return self.read(context)

    @override
    def check(self, context):
        num_prompts, num_available = (
            context.settings.num_prompts,
            len(self.world_data.tasks["reasoning"].train),
        )
        check_available("num_prompts", num_prompts, num_available, "reasoning questions")

    @override
    def read(self, context):
        return self.world_data.tasks["reasoning"].train[: context.settings.num_prompts]


@dataclasses.dataclass(frozen=True, eq=False)
class LastRequests(Prompts):
    """The last num_prompts general questions, which a policy answers.

    Attributes:
        learned: Fine-tunings learn the answers to this many general questions, from the first one
            on. The policy does not answer these.
    """

    world_data: WorldData
    learned: int

    @override
    def covers(self, context):
        return self.read(context)

    @override
    def check(self, context):
        num_available = len(self.world_data.tasks["general"].train) - self.learned
        description = "general questions whose answers are not learned from"
        check_available("num_prompts", context.settings.num_prompts, num_available, description)

    @override
    def read(self, context):
        general = self.world_data.tasks["general"].train
        return general[len(general) - context.settings.num_prompts :]


@dataclasses.dataclass(frozen=True, eq=False)
class SolutionTexts(Texts):
    """The texts of a fine-tuning: accepted answers of earlier stages, and the world's solutions.

    The solutions answer the first questions of each kind; settings.data says how many.
    """

    world_data: WorldData
    accepted: Accepted

    @property
    @override
    def reads(self):
        return self.accepted.reads

    @override
    def covers(self, context):
        return [[m["content"] for m in c["messages"]] for c in self._own(context)]

    @override
    def check(self, context):
        for field, (kind, number) in _numbers(context.settings.data).items():
            with at("data"):
                num_available = len(self.world_data.tasks[kind].train)
                check_available(field, number, num_available, f"{kind} questions")

    def _own(self, context):
        data, conversations = self.world_data, []
        for kind, number in _numbers(context.settings.data).values():
            conversations += data.worked(kind, data.tasks[kind].train[:number])
        return conversations

    @override
    def read(self, context):
        return [*self.accepted.read(context), *self._own(context)]


def _numbers(data: ConversationSettings) -> dict[str, tuple[str, int]]:
    """Return {field: (kind of questions, their number)}."""
    return {
        "num_puzzles": ("reasoning", data.num_puzzles),
        "num_requests": ("general", data.num_requests),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutSolutions(Texts):
    """The world's solutions of the held-out reasoning questions."""

    world_data: WorldData

    @override
    def covers(self, context):
        return [[m["content"] for m in c["messages"]] for c in self.read(context)]

    @override
    def read(self, context):
        return self.world_data.worked("reasoning", self.world_data.tasks["reasoning"].held_out)


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutQuestions(Source):
    """The held-out questions of both kinds, on which policies are measured."""

    world_data: WorldData

    @override
    def covers(self, context):
        return self.read(context)

    def read(self, context: Context) -> list[list[dict]]:
        """Return [reasoning examples, general examples], without their prompt_ids."""
        return [self.world_data.tasks[kind].held_out for kind in KINDS]


def check_available(field: str, number: int, available: int, what: str):
    """Raise ValueError if a field asks for more than is available.

    Args:
        field: The name of the field.
        number: Its value.
        available: The largest value that is possible.
        what: What the field counts, for the message.
    """
    if not 0 <= number <= available:
        raise ValueError(f"{field}={number} must be within 0..{available}, the {what} to train on")
