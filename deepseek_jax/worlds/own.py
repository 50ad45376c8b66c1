"""A user's own data in place of a toy world: questions that a rule checks, and conversations."""

from functools import partial
from pathlib import Path

from deepseek_jax.data.builders import json_lines
from deepseek_jax.data.questions import distinct, read_questions
from deepseek_jax.data.sources import load_jsonl_questions
from deepseek_jax.data.tasks import split_task
from deepseek_jax.errors import at
from deepseek_jax.worlds.world import Questions, World


def own_world(
    reasoning: str | Path, rule: str, general: str | Path | None = None, *, template: str
) -> World:
    """The World of a jsonl file of questions in GSM8K's format, and optionally one of conversations.

    rule: the reward that says whether an answer is right. In the solutions the working before an answer's
    #### stands in <think> tags and the answer in <answer> tags. Raises ValueError, naming the file, as
    load_jsonl_questions and read_questions do.
    """
    with at("reasoning", "path"):
        worked = worked_questions(reasoning)
    questions = {"reasoning": Questions(partial(split_task, worked), rule)}
    if general is not None:
        with at("general", "path"):
            conversations = [e | {"solution": e["answer"]} for e in read_questions(general)]
        questions["general"] = Questions(partial(split_task, conversations))
    return World(
        name="own",
        template=template,
        questions=questions,
        reasoning="reasoning",
        general=None if general is None else "general",
    )


def worked_questions(path: str | Path):
    """The distinct questions of a jsonl file in GSM8K's format, each with its solution in tags."""
    examples = load_jsonl_questions(path)
    # load_jsonl_questions drops the working, so the records are read as well
    records = [record for _, record in json_lines(path)]
    pairs = zip(examples, records, strict=True)
    return distinct(example | {"solution": _solution(example, r)} for example, r in pairs)


def _solution(example, record):
    working = record.get("answer", "").rpartition("####")[0].strip()
    return f"<think>{working}</think><answer>{example['answer']}</answer>"
