"""A user's own data in place of a toy world: questions that a rule checks, and conversations.

Tests: tests/recipes/r1/test_own_world.py, tests/data/test_settings.py.
"""

from functools import partial

from deepseek_jax.data.questions import MARK, parse_question, read_questions
from deepseek_jax.data.settings import PathOrBlock, as_own
from deepseek_jax.data.tasks import Task, split_task
from deepseek_jax.errors import at
from deepseek_jax.named_code import call_code, code_file
from deepseek_jax.parallel.processes import agreed
from deepseek_jax.rewards.workers import WorkerPool
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.worlds.world import Questions, World

# Limit for a function that makes a task, which may read or download its data
LIMIT_SECONDS = 600.0


def own_world(
    reasoning: PathOrBlock, rule: str, general: PathOrBlock | None = None, *, template: str
) -> World:
    """Build a World from a user's questions (GSM8K's format) and, optionally, conversations.

    In the solutions the working before an answer's mark is in <think> tags, and the answer in
    <answer> tags. The files are read when questions are made.

    Args:
        reasoning: The questions: a path, or a block of path, split and columns.
        rule: The reward that says whether an answer is right.
        general: The conversations, likewise.

    Raises:
        ValueError: When questions are made, as in read_questions; the message names the file.
    """

    def make_reasoning(seed, num_held_out):
        with at("reasoning", "path"):
            examples = worked_questions(reasoning)
        return split_task(examples, seed, num_held_out)

    def make_general(seed, num_held_out):
        with at("general", "path"):
            conversations = [e | {"solution": e["answer"]} for e in _read(general)]
        return split_task(conversations, seed, num_held_out)

    questions = {"reasoning": Questions(make_reasoning, rule)}
    if general is not None:
        questions["general"] = Questions(make_general)
    return World(
        name="own",
        template=template,
        questions=questions,
        reasoning="reasoning",
        general=None if general is None else "general",
    )


def _read(data):
    own_data = as_own(data)
    return read_questions(own_data.path, own_data.split, own_data.columns)


def worked_questions(data: PathOrBlock) -> list[dict]:
    """Read the distinct questions of a path or a block, each with its solution in tags.

    Raises:
        ValueError: If an answer has no working.
    """
    examples, path = _read(data), as_own(data).path
    for example in examples:
        if example.get("test_cases") is None and example.get("solution") is None:
            raise ValueError(
                f"path='{path}': the answer to {example['question'][:80]!r} has no working to learn from; "
                f"write answers as '<working> {MARK} <answer>'"
            )
    return [example | {"solution": _solution(example)} for example in examples]


def _solution(example):
    working = (example.get("solution") or "").rpartition(MARK)[0].strip()
    return f"<think>{working}</think><answer>{example['answer']}</answer>"


def own_questions(name: str) -> Questions:
    """Build the Questions of a function that a config names.

    The function is NAME(seed, num_held_out) -> (training, held-out) examples, two lists of dicts as
    in data.questions. A `solution` is a good completion, which fine-tuning learns. The function
    runs in a worker process, on each process of the run: the lists must depend only on its
    arguments.

    Raises:
        ValueError: If the file or the function is missing.
    """
    return Questions(partial(_own_task, name, code_file(name)))


def _own_task(name, file, seed, num_held_out):
    """Make the Task, the same on all processes."""

    def make():
        task = _made(name, file, seed, num_held_out)
        return task, content_hash([task.train, task.held_out])

    return agreed(make, f"task={name!r} makes other questions on each call, or its file")


def _made(name, file, seed, num_held_out):
    # The worker imports the file anew, and nothing of this package
    with WorkerPool(call_code, int, num_workers=1, wall_limit_seconds=LIMIT_SECONDS) as pool:
        result = pool.run({0: (file, name, seed, num_held_out)}).get(0)
    if result is None:
        result = ValueError(pool.lost())
    if isinstance(result, Exception):
        raise ValueError(f"task={name!r}: {result}")
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ValueError(
            f"task={name!r}: returned {str(result)[:80]}; return (training examples, held-out examples)"
        )
    example_sets = [
        [_example(f"task={name!r}, {set_name} example {i}", e) for i, e in enumerate(examples)]
        for set_name, examples in zip(("training", "held-out"), result, strict=True)
    ]
    if not all(example_sets):
        counts = f"{len(example_sets[0])} training and {len(example_sets[1])} held-out examples"
        raise ValueError(f"task={name!r} gives {counts}; give some of both")
    return Task(*example_sets)


def _example(place, example):
    if not isinstance(example, dict):
        raise ValueError(f"{place} is no dict; return lists of dicts with question and answer")
    return parse_question(place, example)
