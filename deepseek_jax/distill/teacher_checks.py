"""Checks that many teachers and one student fit together, made before anything compiles.

Tests: tests/distill/test_teachers.py, tests/distill/test_taught.py.
"""

from jax.sharding import Mesh

from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.distill.teacher_settings import TaughtSettings
from deepseek_jax.errors import at
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.rollout.policy import check_room


def check_teacher(
    student: ModelConfig,
    tokenizer: Tokenizer,
    teacher: ModelConfig,
    teacher_tokenizer: Tokenizer,
):
    """Raise ValueError unless the teacher has the student's vocabulary: the KL is over all of it.

    Widths and layers may differ.

    Args:
        tokenizer: The student's.
        teacher_tokenizer: The teacher's.
    """
    if teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f"the teacher's vocab_size={teacher.vocab_size} is not the student's {student.vocab_size}: the "
            "KL is over one vocabulary; choose a teacher of the same one, or distil from text by "
            "recipe='distill', whose terms matched and sorted compare two"
        )
    student_vocabulary, teacher_vocabulary = (
        t.backend.get_vocab(True) for t in (tokenizer, teacher_tokenizer)
    )
    if student_vocabulary != teacher_vocabulary:
        token = min(
            student_vocabulary.items() ^ teacher_vocabulary.items(),
            key=lambda pair: (pair[1], pair[0]),
        )[0]
        raise ValueError(
            f"the teacher's tokenizer has another vocabulary: {token!r} is token "
            f"{teacher_vocabulary.get(token)} there and {student_vocabulary.get(token)} in the student's; "
            "choose a teacher of the same tokenizer"
        )


def check_questions(settings: TaughtSettings, configs: dict[str, ModelConfig], questions: dict):
    """Raise ValueError if a task has no questions, or if a teacher has no room for them.

    Args:
        configs: The teachers', by name.
        questions: Task -> examples with prompt_ids.
    """
    for task, number in settings.prompts_per_step.items():
        if not questions.get(task):
            tasks_with_questions = ", ".join(
                name for name, examples in questions.items() if examples
            )
            raise ValueError(
                f"prompts_per_step.{task}={number}: there are no questions of that task; there are: "
                f"{tasks_with_questions}"
            )
    for name, config in configs.items():
        with at(f"teachers.{name}"):
            task, rollout = settings.teachers[name].task, settings.rollout
            check_room(config, questions[task], rollout.longest())


def check_rows(settings: TaughtSettings, mesh: Mesh):
    """Raise ValueError unless every task's rows split over the mesh."""
    row_multiple = batch_parts(mesh) * settings.micro_batches
    for task, number in settings.prompts_per_step.items():
        if settings.rows(task) % row_multiple:
            raise ValueError(
                f"prompts_per_step.{task}={number} makes {settings.rows(task)} rows, which do not split into "
                f"micro_batches={settings.micro_batches} over the {batch_parts(mesh)} parts of the mesh "
                "(slices x data x fsdp x expert); make them a multiple of both"
            )
