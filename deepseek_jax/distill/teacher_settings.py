"""Settings of a student that learns from many teachers on its own samples, checked when built.

Tests: tests/distill/test_teachers.py, tests/distill/test_taught.py.
"""

import dataclasses
from typing import ClassVar

from deepseek_jax.errors import at
from deepseek_jax.reinforce.settings import RolloutSettings, scores_fit
from deepseek_jax.settings import Count, Positive, Settings, unhashed
from deepseek_jax.training.settings import FitSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings(Settings):
    """One teacher of a student.

    Attributes:
        task: The task on which the student learns from this teacher; a task has only one teacher.
        weight: w_i of its KL, see distill.many_teachers.
    """

    task: str
    weight: Positive = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtSettings(FitSettings):
    """On-policy distillation from several teachers, see distill.many_teachers.

    A step samples group_size completions for each of prompts_per_step[task] questions of every
    task, and makes one update.

    Attributes:
        teachers: Name -> TeacherSettings.
        prompts_per_step: Task -> its questions in a step.
        rollout: How the student samples.
        group_size: Completions of a question.
        micro_batches: Number of parts of each task's rows.

    Raises:
        ValueError: If tasks and teachers do not pair up, rows do not split, or sampling truncates.
    """

    keep_routing: ClassVar[bool] = False
    teachers: dict[str, TeacherSettings]
    prompts_per_step: dict[str, Count]
    rollout: RolloutSettings
    group_size: Count = 1
    save_every: Count = unhashed(20)

    def __post_init__(self):
        super().__post_init__()
        if not self.teachers:
            raise ValueError("teachers={} leaves nobody to learn from; set at least one teacher")
        owner: dict[str, str] = {}
        for name, teacher in self.teachers.items():
            if teacher.task not in self.prompts_per_step:
                raise ValueError(
                    f"teachers.{name}.task={teacher.task!r} is a task without questions; set "
                    f"prompts_per_step.{teacher.task}, or the task to one of "
                    f"{', '.join(self.prompts_per_step)}"
                )
            if (other := owner.setdefault(teacher.task, name)) != name:
                raise ValueError(
                    f"teachers.{name}.task={teacher.task!r} is the task of teachers.{other} too; a task has "
                    "one teacher: leave one of them out"
                )
        for task, number in self.prompts_per_step.items():
            if task not in owner:
                raise ValueError(
                    f"prompts_per_step.{task}={number} is a task without a teacher; set one with "
                    f"task={task!r}, or leave it out"
                )
            if self.rows(task) % self.micro_batches:
                raise ValueError(
                    f"micro_batches={self.micro_batches} does not divide the {self.rows(task)} rows of "
                    f"prompts_per_step.{task}={number}; set it to a divisor"
                )
        if self.rollout.truncates():
            with at("rollout"):
                raise ValueError(
                    f"top_p={self.rollout.top_p}, top_k={self.rollout.top_k}: the KL is over the full "
                    "vocabulary, and so are the samples; leave both out"
                )

    def questions_per_step(self) -> int:
        """Count the questions of all tasks together."""
        return sum(self.prompts_per_step.values())

    def shares_prompts(self) -> bool:
        """Return whether a prompt and its completions are one row, as in ReinforceSettings."""
        return self.group_size > 1 and scores_fit(self.rollout, self.group_size)

    def rows(self, task: str) -> int:
        """Count the rows of a task in an update."""
        return self.prompts_per_step[task] * (1 if self.shares_prompts() else self.group_size)
