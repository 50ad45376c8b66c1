"""What students learn from, task by task: texts, and questions by which they are measured."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.messages import (
    read_conversations,
    what_it_answers,
    worked_conversations,
)
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.sources import hold_out, read
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.training.lineage import Formerly, content_hash
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer
from deepseek_jax.worlds.bilingual.request_rewards import helpfulness
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task, bilingual_request_task
from deepseek_jax.worlds.world import given_solution

REWARDS = {"sum": puzzle_answer, "countdown": puzzle_answer, "requests": helpfulness}


class TransferTask(NamedTuple):
    """train, held_out: random access to conversations; of train the weight is the task's as well.

    questions: examples to answer, and reward(text, example) -> float, 1 for a right answer, or in between for
    one that helps in part; none of a task that is read from a path.
    """

    train: object
    held_out: object
    questions: list
    reward: object = None


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


def small_world(seed, num_questions):
    """{"puzzles", "requests"}: Tasks of the bilingual world, num_questions of each kind held out."""
    return {
        "puzzles": bilingual_puzzle_task(seed, 2 * num_questions),
        "requests": bilingual_request_task(seed, num_questions),
    }


def transfer_tasks(settings, world, accepted, folder):
    """name -> TransferTask. settings: DistillSettings. world: of small_world. accepted: the teacher's right
    answers, dicts of question and solution, or None for the world's own solutions.
    """
    tasks = {}
    for name, task in settings.tasks.items():
        if task.path is not None:
            with at(f"config.tasks.{name}"):
                source = read_conversations(task.path, folder, task.split)
                train, held_out = hold_out(source, task.num_held_out, what_it_answers)
            tasks[name] = TransferTask(Weighted(train, task.weight), held_out, [])
            continue
        examples = _of_kind(world, name)
        shown = examples.train
        if accepted is not None and name != "requests":
            own = {example["question"] for example in examples.train}
            shown = [line for line in accepted if line["question"] in own]
        if not shown:
            raise ValueError(
                f"config.tasks.{name} has no text of the teacher's; raise config.text.num_prompts"
            )
        tasks[name] = TransferTask(
            Weighted(worked_conversations(shown, given_solution), task.weight),
            worked_conversations(examples.held_out, given_solution),
            examples.held_out,
            REWARDS[name],
        )
    return tasks


def texts_hash(settings, digest, given):
    """What the tasks' texts are, by content: the hash of the settings, of the teacher's (digest), and of the
    files that they are read from; of a TFDS dataset, of its dataset_info.json. given: the block tasks of the
    config, which records without a format have as it is.
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


def prompted(examples, tokenizer, template):
    """The examples with their prompt_ids."""
    return [
        example | {"prompt_ids": render_prompt(tokenizer, example["question"], template=template)}
        for example in examples
    ]


def _of_kind(world, name):
    if name == "requests":
        return world["requests"]
    puzzles = world["puzzles"]
    return Task(
        *([e for e in part if e["kind"] == name] for part in (puzzles.train, puzzles.held_out))
    )
