"""The tasks of a distillation: texts that students learn, and questions that they are measured on."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

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
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.recipes.distill.settings import DistillSettings, TaskSettings
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.worlds.world import World, given_solution


class TransferTask(NamedTuple):
    """A task. train, held_out: random access to conversations; the weights of train include the task's.

    questions: held-out examples to answer; a task without any is not measured by answers. rule: the reward of
    an answer: 1 if it is right, less if it helps in part.
    """

    train: object
    held_out: object
    questions: list
    rule: str | None = None


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Conversations whose weights are multiplied by `weight`."""

    source: object
    weight: float

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        records = read(self.source, indices)
        return [record | {"weight": record["weight"] * self.weight} for record in records]


def world_tasks(world: World, seed: int, num_questions: int):
    """Name of the world's questions -> Task, with num_questions held out for each part of them."""
    return {
        name: questions.task(seed, num_questions * max(len(questions.kinds), 1))
        for name, questions in world.questions.items()
    }


def file_tasks(settings: DistillSettings, folder: Path):
    """name -> TransferTask of each task that has files of its own, of which datasets are made in folder.
    Raises ValueError as at "config".
    """
    found = {}
    for name, task in settings.tasks.items():
        if task.path is not None:
            with at(f"tasks.{name}"):
                found[name] = _of_files(task, folder)
    return found


def transfer_tasks(
    settings: DistillSettings, world: World, tasks: dict[str, Task], accepted, of_files: dict
):
    """name -> TransferTask. tasks: of world_tasks. accepted: the teacher's right answers, dicts of question
    and solution, or None for the world's own solutions. of_files: of file_tasks.
    """
    found = {}
    for name, task in settings.tasks.items():
        with at(f"config.tasks.{name}"):
            found[name] = of_files.get(name) or _of_world(name, task, world, tasks, accepted)
    return found


def _of_files(task: TaskSettings, folder: Path):
    source = read_conversations(task.path, folder, task.split, task.columns)
    questions = []
    if task.questions is not None:
        with at("questions", "path"):
            own = as_own(task.questions)
            questions = read_questions(own.path, own.split, own.columns)
    measured = map(asked_key, questions)
    train, held_out = hold_out(source, task.num_held_out, what_it_answers, measured)
    return TransferTask(Weighted(train, task.weight), held_out, questions, task.rule)


def _of_world(name: str, task: TaskSettings, world: World, tasks: dict[str, Task], accepted):
    sort, kind = world.parts()[name]
    questions, examples = world.questions[sort], tasks[sort]
    train, held_out = (
        [e for e in part if kind is None or e["kind"] == kind]
        for part in (examples.train, examples.held_out)
    )
    shown, worked = train, questions.worked
    if accepted is not None and sort == world.reasoning:
        # The teacher answered puzzles of all kinds; this task has those of its own
        own = {example["question"] for example in train}
        shown, worked = [e for e in accepted if e["question"] in own], given_solution
    if not shown:
        raise ValueError(
            "the teacher has no right answer to a puzzle of this task; raise config.text.num_prompts"
        )
    return TransferTask(
        Weighted(worked_conversations(shown, worked), task.weight),
        worked_conversations(held_out, questions.worked),
        held_out,
        questions.rule,
    )


def texts_hash(settings: DistillSettings, digest: str | None):
    """A hash that changes with the tasks' texts: of the settings, of digest (the teacher's answers) and of
    the files' contents.
    """
    contents = [content_digest(t.path, t.split) for t in settings.tasks.values() if t.path]
    return content_hash([settings.tasks, digest, settings.seed, contents])


def mixed(sources, temperature: float):
    """A Mixture that draws a source of n documents in proportion to n**(1/temperature): at 1 by size, and the
    higher, the more evenly (arXiv:1910.10683, section 3.5.2).
    """
    sources = tuple(sources)
    return Mixture(sources, tuple(len(source) ** (1 / temperature) for source in sources))
