"""The tasks of a distillation: texts that students learn, and questions to measure them on.

Tests: tests/recipes/distill/test_run.py.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.questions import asked_key, read_questions
from deepseek_jax.data.records import content_digest
from deepseek_jax.data.settings import as_own
from deepseek_jax.data.sources import hold_out, read
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.named_code import digest_of
from deepseek_jax.recipes.distill.settings import DistillSettings, TaskSettings
from deepseek_jax.recipes.kinds.accept import Prompts, accepted_by
from deepseek_jax.recipes.kinds.reinforce import Questions
from deepseek_jax.recipes.kinds.tune import Texts
from deepseek_jax.recipes.r1.settings import ConversationSettings
from deepseek_jax.recipes.stage import Context, Source
from deepseek_jax.worlds.registry import find_world
from deepseek_jax.worlds.world import World, given_solution

# Held-out questions of the world if config.evaluation is None
FEWEST = 2


class TransferTask(NamedTuple):
    """One task: texts to learn, and questions to answer.

    Attributes:
        train: Conversations to learn, with random access. Their weights include the task's weight.
        held_out: Conversations for the held-out loss, with random access.
        questions: Held-out examples to answer; a task without any is not measured by answers.
        rule: The reward of an answer: 1 if it is right, less if it helps only in part.
    """

    train: RandomAccess
    held_out: RandomAccess
    questions: list[dict]
    rule: str | None = None


@dataclasses.dataclass(frozen=True)
class WeightedConversations:
    """Conversations, by random access, with their weights multiplied by `weight`."""

    source: RandomAccess
    weight: float

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        records = read(self.source, indices)
        return [record | {"weight": record["weight"] * self.weight} for record in records]


@dataclasses.dataclass(frozen=True, eq=False)
class WorldQuestions(Questions):
    """The questions of the config's world; reinforcement uses its reasoning questions."""

    settings: DistillSettings

    @property
    def world(self) -> World:
        """The World of config.world."""
        return find_world(self.settings.world)

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Name of the world's questions -> Task; policies answer its held-out questions."""
        settings = self.settings
        number = FEWEST if settings.evaluation is None else settings.evaluation.num_questions
        return {
            name: questions.task(settings.seed, number * max(len(questions.kinds), 1))
            for name, questions in self.world.questions.items()
        }

    @property
    def rule(self) -> str:
        """The reward that says whether an answer to a reasoning question is right."""
        rule = self.world.questions[self.world.reasoning].rule
        # The field `reasoning` names questions that a rule checks
        assert rule is not None
        return rule

    @property
    def puzzles(self) -> Task:
        """The Task of the reasoning questions."""
        return self.tasks[self.world.reasoning]

    @override
    def covers(self, context):
        return self.puzzles.train

    @override
    def read(self, context):
        return {"reasoning": self.puzzles.train, "general": []}

    @override
    def held_out(self, context):
        return self.puzzles.held_out


@dataclasses.dataclass(frozen=True, eq=False)
class FirstPuzzles(Prompts):
    """The first `number` reasoning questions of the world, which the teacher answers."""

    questions: WorldQuestions
    number: int

    @override
    def covers(self, context):
        return self.read(context)

    @override
    def read(self, context):
        return self.questions.puzzles.train[: self.number]


@dataclasses.dataclass(frozen=True, eq=False)
class Solutions(Texts):
    """Conversations with the world's solutions, to fine-tune a teacher on or to measure it on.

    Attributes:
        data: How many questions of each kind the training texts have.
        held_out: True for the held-out reasoning questions in place of the training texts.
    """

    questions: WorldQuestions
    data: ConversationSettings
    held_out: bool = False

    @override
    def covers(self, context):
        return [[m["content"] for m in c["messages"]] for c in self.read(context)]

    @override
    def read(self, context):
        tasks, world = self.questions.tasks, self.questions.world
        if self.held_out:
            solution_of = world.questions[world.reasoning].worked
            return worked_conversations(self.questions.puzzles.held_out, solution_of)
        numbers = (world.reasoning, self.data.num_puzzles), (world.general, self.data.num_requests)
        conversations = []
        for name, number in numbers:
            if name is not None:
                conversations += worked_conversations(
                    tasks[name].train[:number], world.questions[name].worked
                )
        return conversations


class StudentTexts(NamedTuple):
    """The texts that a student learns, and how they are mixed and packed.

    Attributes:
        tasks: Name -> TransferTask.
        mixing_temperature, packing, readers: As in DistillSettings.
    """

    tasks: dict[str, TransferTask]
    mixing_temperature: float
    packing: bool
    readers: int


@dataclasses.dataclass(frozen=True, eq=False)
class TaskTexts(Source):
    """The texts of all tasks, and their held-out questions.

    Attributes:
        accepted: The names of the stages with the teacher's accepted answers, which are the texts
            of reasoning tasks; empty to use the world's own solutions.
    """

    settings: DistillSettings
    questions: WorldQuestions
    accepted: tuple[str, ...] = ()

    @property
    @override
    def reads(self):
        return self.accepted

    @override
    def covers(self, context):
        settings = self.settings
        digests = {}
        for name, task in settings.tasks.items():
            if task.path is not None:
                with at("config"), at(f"tasks.{name}"):
                    digests[name] = content_digest(task.path, task.split)
        batch_settings = [settings.mixing_temperature, settings.packing, settings.readers]
        names = [task.rule for task in settings.tasks.values() if task.rule]
        rules = [[name, digest_of(name)] for name in names]
        return [settings.tasks, settings.world, settings.seed, digests, batch_settings, rules]

    @override
    def check(self, context):
        # Wrong files raise before the teacher is trained
        self._of_files(context)

    @override
    def describe(self, context):
        # The teacher's answers are not there yet
        tasks = self.tasks(context).items()
        return "; ".join(f"{name}: {len(task.train)} texts" for name, task in tasks)

    def _of_files(self, context):
        with at("config"):
            return context.once((self, "files"), lambda: file_tasks(self.settings, context.data))

    def read(self, context: Context) -> StudentTexts:
        """Return the texts; the teacher's accepted answers have to be there."""
        settings = self.settings
        accepted_answers = accepted_by(context.folder, self.accepted) if self.accepted else None
        return StudentTexts(
            self.tasks(context, accepted_answers),
            settings.mixing_temperature,
            settings.packing,
            settings.readers,
        )

    def tasks(
        self, context: Context, accepted: list[dict] | None = None
    ) -> dict[str, TransferTask]:
        """Return {name: TransferTask}.

        Args:
            context: The context of the stage.
            accepted: The teacher's accepted answers; None to use the world's own solutions.
        """
        questions = self.questions
        return transfer_tasks(
            self.settings, questions.world, questions.tasks, accepted, self._of_files(context)
        )


def file_tasks(settings: DistillSettings, folder: Path) -> dict[str, TransferTask]:
    """Return {name: TransferTask} of the tasks with files.

    Args:
        settings: The settings of the whole config.
        folder: The folder for the datasets that are built from the files.

    Raises:
        ValueError: The files do not fit the settings; the message has the field's path below
            `config`.
    """
    tasks = {}
    for name, task in settings.tasks.items():
        if task.path is not None:
            with at(f"tasks.{name}"):
                tasks[name] = _of_files(task, task.path, folder)
    return tasks


def transfer_tasks(
    settings: DistillSettings,
    world: World,
    tasks: dict[str, Task],
    accepted: list[dict] | None,
    of_files: dict[str, TransferTask],
) -> dict[str, TransferTask]:
    """Return {name: TransferTask} of all tasks.

    Args:
        settings: The settings of the whole config.
        world: The World of config.world.
        tasks: WorldQuestions.tasks.
        accepted: The teacher's right answers, dicts of question and solution; None to use the
            world's own solutions.
        of_files: The result of file_tasks.

    Raises:
        ValueError: The teacher has no right answer to any puzzle of a task.
    """
    all_tasks = {}
    for name, task in settings.tasks.items():
        with at(f"config.tasks.{name}"):
            all_tasks[name] = of_files.get(name) or _of_world(name, task, world, tasks, accepted)
    return all_tasks


def _of_files(task: TaskSettings, path: str, folder: Path):
    source = read_conversations(path, folder, task.split, task.columns)
    questions = []
    if task.questions is not None:
        with at("questions", "path"):
            question_data = as_own(task.questions)
            # A block in place of a path is an OwnPath, which has one
            assert question_data.path is not None
            questions = read_questions(
                question_data.path, question_data.split, question_data.columns
            )
    measured_keys = map(asked_key, questions)
    train, held_out = hold_out(source, task.num_held_out, what_it_answers, measured_keys)
    return TransferTask(WeightedConversations(train, task.weight), held_out, questions, task.rule)


def _of_world(
    name: str, task: TaskSettings, world: World, tasks: dict[str, Task], accepted_answers
) -> TransferTask:
    questions_name, kind = world.question_parts()[name]
    questions, world_task = world.questions[questions_name], tasks[questions_name]
    if questions.rule is None:
        raise ValueError(
            "no rule says whether answers to these questions of the world are right, so that policies "
            "cannot be measured on them; leave this task out"
        )
    train, held_out = (
        [e for e in examples if kind is None or e["kind"] == kind]
        for examples in (world_task.train, world_task.held_out)
    )
    solved_examples, solution_of = train, questions.worked
    if accepted_answers is not None and questions_name == world.reasoning:
        # The teacher answered puzzles of all kinds; this task takes the ones of its kind
        own_questions = {example["question"] for example in train}
        solved_examples, solution_of = (
            [e for e in accepted_answers if e["question"] in own_questions],
            given_solution,
        )
    if not solved_examples:
        raise ValueError(
            "the teacher has no right answer to a puzzle of this task; raise config.text.num_prompts"
        )
    return TransferTask(
        WeightedConversations(worked_conversations(solved_examples, solution_of), task.weight),
        worked_conversations(held_out, questions.worked),
        held_out,
        questions.rule,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutQuestions(Source):
    """The questions on which policies are measured."""

    texts: TaskTexts

    @override
    def covers(self, context):
        tasks = self.read(context).values()
        rules = [
            [rule, digest_of(rule)] for task in tasks if task.questions and (rule := task.rule)
        ]
        return [[task.questions for task in tasks], rules]

    def read(self, context: Context) -> dict[str, TransferTask]:
        """Return {name: TransferTask} of every task; a task without questions is not measured."""
        return context.once(self, lambda: self.texts.tasks(context))


def mixed(sources: Iterable[RandomAccess], temperature: float) -> Mixture:
    """Mix sources so that a source of n documents has a share in proportion to n**(1/temperature).

    At temperature 1 the shares follow the sizes; the higher it is, the more even they are
    (arXiv:1910.10683, section 3.5.2).
    """
    all_sources = tuple(sources)
    return Mixture(all_sources, tuple(len(source) ** (1 / temperature) for source in all_sources))
