"""What a distillation can know of its stages before the first one runs, which may take hours."""

import dataclasses

from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.data.tokenizer import check_checkpoint, checkpoint_path
from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig, build_model
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.distill.settings import (
    DistillSettings,
    StartSettings,
    StudentSettings,
    TeacherSettings,
)
from deepseek_jax.recipes.start import check_positions, check_rows, check_slots
from deepseek_jax.reinforce.update import check_rows as check_groups
from deepseek_jax.rollout.policy import check_room, check_vocabulary
from deepseek_jax.worlds.registry import named_tokenizer, open_rewards


def check(settings: DistillSettings, mesh):
    """Raise ValueError, naming the field, for a checkpoint that is not there, rows or slots that do not split
    over the mesh, texts or answers beyond a model's positions, and an unknown tokenizer or reward.
    """
    check_slots(settings, mesh)
    starts = {}
    for name, start in settings.starts.items():
        with at(f"starts.{name}"):
            starts[name] = _config(start, mesh, init_from=start.init_from)
    answering = list(starts.values())
    if settings.teacher is not None:
        with at("teacher"):
            answering.append(_teacher(settings.teacher, mesh))
        if settings.text is not None:
            with at("text"):
                check_room(answering[-1], (), settings.text.max_completion_length)
    if settings.evaluation is not None:
        with at("evaluation"):
            for config in answering:
                check_room(config, (), settings.evaluation.max_completion_length)
    _check_learners(settings, starts, mesh)


def _check_learners(settings: DistillSettings, starts: dict[str, ModelConfig], mesh):
    for name, student in settings.students.items():
        with at(f"students.{name}"):
            check_student_rows(student, mesh)
            # A start may be given other positions than its checkpoint's own, to learn from
            own = settings.starts[student.start].max_position_embeddings
            given = {} if own is None else dict(max_position_embeddings=own)
            check_positions(student, dataclasses.replace(starts[student.start], **given))
    for name, student in settings.reinforced.items():
        with at(f"reinforced.{name}"):
            check_groups(student, mesh)
            with at("rollout"):
                check_room(starts[student.start], (), student.rollout.longest())
            with at("rewards"):
                open_rewards(student.rewards).close()


def check_student_rows(student: StudentSettings, mesh):
    """Raise ValueError, naming the fields, unless the rows of texts and of samples split over the mesh."""
    check_rows(student, mesh)
    if (on_policy := student.loss.on_policy) is not None:
        rows, length = on_policy.prompts, student.sequence_length
        with at(f"loss.on_policy.prompts={rows}"):
            check_batch(mesh, rows, length, micro_batches=student.micro_batches)


def _teacher(teacher: TeacherSettings, mesh):
    """The teacher's ModelConfig."""
    config = _config(teacher, mesh, path=teacher.path)
    if teacher.fine_tune is not None:
        with at("fine_tune"):
            check_positions(teacher.fine_tune, config)
            check_rows(teacher.fine_tune, mesh, config.pipeline_micro_batches)
    return config


def _config(block: TeacherSettings | StartSettings, mesh, **checkpoint: str | None):
    """The ModelConfig of a teacher or a start. checkpoint: its field that names one, and what it says."""
    ((field, path),) = checkpoint.items()
    if path is not None:
        with at(field):
            check_checkpoint(path)
            return read_any_config(checkpoint_path(path))
    config = build_model(block.model)
    with at("tokenizer"):
        tokenizer = named_tokenizer(block.tokenizer)
    check_vocabulary(config, tokenizer)
    if block.base is not None:
        with at("base"):
            block.base.check(config, mesh)
    return config
