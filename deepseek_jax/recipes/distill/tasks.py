"""What students learn from, task by task: texts, and questions by which they are measured."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.sources import hold_out, read
from deepseek_jax.errors import at
from deepseek_jax.training.lineage import Formerly, content_hash
from deepseek_jax.worlds.world import given_solution


class TransferTask(NamedTuple):
    """train, held_out: random access to conversations; of train the weight is the task's as well.

    questions: examples to answer; rule: the reward that says how right an answer is, 1 for a right one, or in
    between for one that helps in part. A task without them is not measured by answers.
    """

    train: object
    held_out: object
    questions: list
    rule: str | None = None


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Conversations, each of which counts `weight` times as much."""

    source: object
    weight: float

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        records = read(self.source, indices)
        return [record | {"weight": record["weight"] * self.weight} for record in records]


def world_tasks(world, seed, num_questions):
    """Name of the world's questions -> Task, num_questions of each part of them held out."""
    return {
        name: questions.make(seed, num_questions * max(len(questions.kinds), 1))
        for name, questions in world.questions.items()
    }


def transfer_tasks(settings, world, tasks, accepted, folder):
    """name -> TransferTask. settings: DistillSettings. tasks: of world_tasks. accepted: the teacher's right
    answers, dicts of question and solution, or None for the world's own solutions.
    """
    found = {}
    for name, task in settings.tasks.items():
        with at(f"config.tasks.{name}"):
            if task.path is not None:
                found[name] = _of_files(task, folder)
            else:
                found[name] = _of_world(name, task, world, tasks, accepted)
    return found


def _of_files(task, folder):
    source = read_conversations(task.path, folder, task.split)
    train, held_out = hold_out(source, task.num_held_out, what_it_answers)
    questions = []
    if task.questions is not None:
        with at("questions", "path"):
            questions = read_questions(task.questions)
    return TransferTask(Weighted(train, task.weight), held_out, questions, task.rule)


def _of_world(name, task, world, tasks, accepted):
    sort, kind = world.parts()[name]
    questions, examples = world.questions[sort], tasks[sort]
    train, held_out = (
        [e for e in part if kind is None or e["kind"] == kind]
        for part in (examples.train, examples.held_out)
    )
    shown, worked = train, questions.worked
    if accepted is not None and sort == world.reasoning:
        own = {example["question"] for example in train}
        shown, worked = [e for e in accepted if e["question"] in own], given_solution
    if not shown:
        raise ValueError("there is no text of the teacher's; raise config.text.num_prompts")
    return TransferTask(
        Weighted(worked_conversations(shown, worked), task.weight),
        worked_conversations(held_out, questions.worked),
        held_out,
        questions.rule,
    )


def texts_hash(settings, digest, given):
    """What the tasks' texts are, by content: the hash of the settings, of the teacher's (digest), and of the
    files that they are read from; of a TFDS dataset, of its dataset_info.json. given: the block tasks as
    config.json has it, which records without a format hash.
    """
    paths = [Path(task.path) for task in settings.tasks.values() if task.path]
    files = [path / "dataset_info.json" if path.is_dir() else path for path in paths]
    contents = [content_hash(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    more = [digest, settings.seed, contents]
    return Formerly(content_hash([settings.tasks, *more]), content_hash([given, *more]))


def mixed(sources, temperature):
    """A Mixture of sources of n documents each, drawn in shares of n**(1/temperature): 1 leaves sizes as they
    are, and the higher, the more alike (arXiv:1910.10683, section 3.5.2).
    """
    sources = tuple(sources)
    return Mixture(sources, tuple(len(source) ** (1 / temperature) for source in sources))
