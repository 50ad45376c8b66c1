"""A user's own data in the place of a toy world: questions that a rule checks, and conversations."""

from functools import partial

from deepseek_jax.data.builders import json_lines
from deepseek_jax.data.questions import distinct, read_questions
from deepseek_jax.data.sources import load_jsonl_questions
from deepseek_jax.data.tasks import split_task
from deepseek_jax.worlds.world import Questions, World


def own_world(reasoning, rule, general=None, *, template):
    """The World of a jsonl file of questions in GSM8K's format, and of one of conversations.

    rule: the reward that says whether an answer is right. The working before an answer's #### is thought,
    and the answer stands in tags. Raises ValueError, naming the file, as load_jsonl_questions and
    read_questions do.
    """
    questions = {"reasoning": Questions(partial(split_task, worked_questions(reasoning)), rule)}
    if general is not None:
        conversations = [e | {"solution": e["answer"]} for e in read_questions(general)]
        questions["general"] = Questions(partial(split_task, conversations))
    return World(
        name="own",
        template=template,
        questions=questions,
        reasoning="reasoning",
        general=None if general is None else "general",
    )


def worked_questions(path):
    """The different questions of a jsonl file in GSM8K's format, each with its solution in tags."""
    records = [record for _, record in json_lines(path)]
    pairs = zip(load_jsonl_questions(path), records, strict=True)
    return distinct(example | {"solution": _solution(example, r)} for example, r in pairs)


def _solution(example, record):
    working = record.get("answer", "").rpartition("####")[0].strip()
    return f"<think>{working}</think><answer>{example['answer']}</answer>"
