"""Distillation of a teacher into students of other architectures (arXiv:2501.12948, section 2.4).

teacher (a checkpoint, or trained first) -> accept its right answers -> the students' starts
-> train each student on the accepted texts, by the terms of config.students.NAME.loss

Policies are measured on held-out questions. For comparison, the students of config.reinforced learn
only from rewards.
"""

import dataclasses

from deepseek_jax.recipes.distill.measure import MeasureTasks
from deepseek_jax.recipes.distill.report import TEACHER, page, report, report_sweep
from deepseek_jax.recipes.distill.settings import DistillSettings, StartSettings, TeacherSettings
from deepseek_jax.recipes.distill.tasks import (
    FirstPuzzles,
    HeldOutQuestions,
    Solutions,
    TaskTexts,
    WorldQuestions,
)
from deepseek_jax.recipes.kinds.accept import Accept, Rule
from deepseek_jax.recipes.kinds.distil import Distil, TaughtBy
from deepseek_jax.recipes.kinds.given import GivenPolicy, Random
from deepseek_jax.recipes.kinds.pretrain import BaseCorpus, Pretrain
from deepseek_jax.recipes.kinds.reinforce import Reinforce
from deepseek_jax.recipes.kinds.tune import Tune
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.paid import StageRewards
from deepseek_jax.recipes.stage import Stage

__all__ = ["SETTINGS", "page", "report", "report_sweep", "stages"]
SETTINGS = DistillSettings


def stages(s: DistillSettings) -> list[Stage]:
    """List the stages: the teacher, its texts, the starts, then each student.

    The teacher and the starts are measured before the first student is trained, each student after
    its training.
    """
    questions, accepting_stages = WorldQuestions(s), () if s.text is None else ("text",)
    texts = TaskTexts(s, questions, accepting_stages)
    measurements = _Measurements(s, HeldOutQuestions(texts))
    all_stages = [] if s.teacher is None else _teacher(s, s.teacher, questions)
    if s.text is not None:
        prompts, rule = FirstPuzzles(questions, s.text.num_prompts), Rule(questions.rule)
        all_stages.append(
            Accept("text", s.text, prompts, rule, seed=s.seed, start=TEACHER, trained=False)
        )
    all_stages += [_start(s, name) for name in s.starts]
    all_stages += [
        measurements.policy(stage.name, stage.title.removeprefix("start "), stage.title)
        for stage in all_stages
        if stage.leaves_policy and stage.name != "teacher_base" and measurements.asks
    ]
    for name, student in s.seeded(s.students).items():
        # None if the loss needs no teacher: then another teacher does not train the student again
        teacher = TaughtBy(TEACHER) if student.loss.asks_teacher() else None
        stage: Stage = Distil(
            f"students/{name}",
            student,
            texts,
            teacher,
            seed=s.seed,
            start=f"starts/{student.start}",
            adapter=student.adapter,
            path=f"students.{name}",
            label=f"{name}: ",
            title=name,
        )
        all_stages += [stage, *measurements.after(stage, student.start)]
    for name, student in s.seeded(s.reinforced).items():
        stage = Reinforce(
            f"reinforced/{name}",
            student,
            questions,
            StageRewards(student),
            seed=s.seed,
            start=f"starts/{student.start}",
            path=f"reinforced.{name}",
            label=f"{name}: ",
            title=name,
        )
        all_stages += [stage, *measurements.after(stage, student.start)]
    return all_stages


def _teacher(
    s: DistillSettings, teacher: TeacherSettings, questions: WorldQuestions
) -> list[Stage]:
    """Return the stages of the teacher: a checkpoint, or a base and its fine-tuning."""
    origin = _origin(s, teacher, "teacher", teacher.path, "path")
    if teacher.path is not None:
        return [GivenPolicy(TEACHER, None, origin=origin, path="teacher", title=TEACHER)]
    # TeacherSettings have either a path or both of these
    assert teacher.base is not None
    assert teacher.fine_tune is not None
    corpus = BaseCorpus(teacher.base, s.seed)
    tuning = dataclasses.replace(teacher.fine_tune, seed=s.seed)
    texts = Solutions(questions, tuning.data), Solutions(questions, tuning.data, held_out=True)
    return [
        Pretrain(
            "teacher_base",
            teacher.base,
            corpus,
            seed=s.seed,
            origin=origin,
            path="teacher.base",
            label="teacher: pretrain",
            title="teacher_base",
        ),
        Tune(
            TEACHER,
            tuning,
            *texts,
            seed=s.seed,
            start="teacher_base",
            path="teacher.fine_tune",
            title=TEACHER,
        ),
    ]


def _start(s: DistillSettings, name: str) -> Stage:
    """Return the stage of a start: a checkpoint, a base to pre-train, or random parameters."""
    start, path, title = s.starts[name], f"starts.{name}", f"start {name}"
    origin = _origin(s, start, path, start.init_from)
    if start.init_from is not None:
        return GivenPolicy(f"starts/{name}", None, origin=origin, path=path, title=title)
    if start.base is None:
        saves_params = any(
            student.adapter and student.start == name for student in s.students.values()
        )
        return Random(
            f"starts/{name}", None, saves_params, seed=s.seed, origin=origin, path=path, title=title
        )
    return Pretrain(
        f"starts/{name}",
        start.base,
        BaseCorpus(start.base, s.seed),
        seed=s.seed,
        origin=origin,
        path=f"{path}.base",
        label=f"{name}: pretrain",
        title=title,
    )


def _origin(
    s: DistillSettings,
    block: TeacherSettings | StartSettings,
    path: str,
    checkpoint: str | None,
    field: str = "init_from",
) -> Origin:
    positions = block.max_position_embeddings if isinstance(block, StartSettings) else None
    return Origin(
        block.model,
        s.template,
        checkpoint,
        None if checkpoint else block.tokenizer,
        path=path,
        field=field,
        template_path="",
        positions=positions,
        trained=False,
    )


@dataclasses.dataclass(frozen=True)
class _Measurements:
    """The measurements of a distillation's policies."""

    settings: DistillSettings
    questions: HeldOutQuestions

    @property
    def asks(self) -> bool:
        """True if some task has questions."""
        tasks = self.settings.tasks.values()
        return any(task.path is None or task.questions for task in tasks)

    def policy(self, name: str, root: str, title: str) -> Stage:
        """Return the measurement of the policy that a stage produces.

        Args:
            name: The name of the stage.
            root: The start's name, or the teacher's, for the names of the programs.
            title: The title of the policy on the page.
        """
        # DistillSettings have it if a task has questions, and only then are there measurements
        assert self.settings.evaluation is not None
        return MeasureTasks(
            f"measured/{name}",
            self.settings.evaluation,
            self.questions,
            seed=self.settings.seed,
            start=name,
            path="evaluation",
            label=f"evaluation of {root}: ",
            title=title,
        )

    def after(self, stage: Stage, start: str) -> list[Stage]:
        """Return the measurement of a student, in a list; [] if no task has questions.

        Args:
            stage: The stage that trains the student.
            start: The name of its start. The student answers with the same programs, so they have
                this name.
        """
        return [self.policy(stage.name, start, stage.title)] if self.asks else []
