"""Settings of R1: each block of its config is a dataclass, checked when it is built.

Tests: tests/recipes/r1/test_run.py.
"""

import dataclasses
import typing
from typing import ClassVar, Literal

from deepseek_jax.data.chat import Template
from deepseek_jax.data.settings import PathOrBlock
from deepseek_jax.distill.teacher_settings import TaughtSettings, TeacherSettings
from deepseek_jax.errors import at, suggest
from deepseek_jax.recipes.reward_model.settings import (
    JudgeTrainingSettings,
    RewardTrainingSettings,
)
from deepseek_jax.recipes.settings import PolicyRun
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.settings import Checkpoint, Count, Named, Natural, PositiveShare, Several
from deepseek_jax.synthesis.settings import RejectionSettings
from deepseek_jax.training.settings import check_readers
from deepseek_jax.worlds.registry import find_world

# The default for a user's own data
TEMPLATE = "r1_zero"
# Names of blocks of the config and of stages; the names in REWARD_MODELS are rewards, too
REWARD_MODELS = ("helpfulness_model", "safety_model")
PREFERENCE_STAGES = (*REWARD_MODELS, "judge")
# Specialist -> its kind of questions. It is Dev3, reinforced on these; its name is also the name of
# a block of the config and of a stage
SPECIALISTS = {"reasoning_teacher": "reasoning", "general_teacher": "general"}
# The two forms of the last stage; each trains an R1 from Dev3
LAST_STAGES = ("scenarios", "distilled")


@dataclasses.dataclass(frozen=True)
class ConversationSettings:
    """Training questions that are learned with their good solutions.

    Attributes:
        num_puzzles: The number of reasoning questions.
        num_requests: The number of general questions.
        readers: As in CorpusSettings (recipes.pretrain.settings).
    """

    packing: ClassVar[bool] = True
    num_puzzles: Natural = 0
    num_requests: Natural = 0
    readers: Count = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1FineTuneSettings(FineTuneSettings):
    """A stage of fine-tuning.

    Attributes:
        data: Its conversations, in addition to the completions that rejection sampling accepted.
    """

    data: ConversationSettings

    def __post_init__(self):
        super().__post_init__()
        with at("data"):
            check_readers(self.data.readers, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(AnswerOptions):
    """How every stage's policy is measured on held-out questions.

    Attributes:
        num_puzzles: The number of reasoning questions.
        num_requests: The number of general questions.
        samples: Answers to each question.
    """

    num_puzzles: Several = 128
    num_requests: Several = 96
    samples: Count = 16
    top_p: PositiveShare = 1.0
    slots: Count = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnDataSettings:
    """A user's own data, in place of a world.

    Attributes:
        reasoning: The path of questions in GSM8K's format, or a block of path, split and columns.
        rule: The reward that checks the answers to these questions.
        general: The path of conversations, or such a block; None for no general questions. The last
            question of a conversation is asked, and its last message is a good answer.
        template: See data.chat.
    """

    reasoning: PathOrBlock
    rule: Named = "math_verify"
    general: PathOrBlock | None = None
    template: Template = TEMPLATE


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1TeacherSettings(TeacherSettings):
    """A teacher: the policy of a stage, or a checkpoint.

    Exactly one of stage and path is set.

    Attributes:
        stage: The name of the stage. It must not be one of LAST_STAGES.
        path: The checkpoint: a folder of parameters that a run saved, a Hugging Face folder or a
            .gguf file.
        weight: The weight of its KL.
    """

    # One of reinforce.settings.SCENARIOS
    task: Literal["reasoning", "general"]
    stage: str | None = None
    path: Checkpoint | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.stage is None) == (self.path is None):
            raise ValueError(
                f"stage={self.stage!r} and path={self.path!r}: set just one of them, a stage of this run or "
                "a checkpoint"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledSettings(TaughtSettings):
    """The last stage as distillation from specialists.

    Dev3 learns from its teachers on its own samples.
    """

    # A dict of a subclass is right here: nothing adds another teacher
    teachers: dict[str, R1TeacherSettings]  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True, kw_only=True)
class R1Settings(PolicyRun):
    """The whole config of R1, a block for each stage.

    The stages begin from base, pre-trained on the world's corpus, or from init_from, a checkpoint
    with its own tokenizer. They derive their seeds from seed. The last stage is scenarios,
    distilled, or both; each begins from Dev3. Without general questions leave out judge, judged,
    helpfulness_model and safety_model.

    Attributes:
        zero: R1-Zero, reinforcement of the base.
        cold_start: Stage 1, fine-tuning of the base on the traces of R1-Zero: Dev1.
        reasoning: Stage 2, reinforcement on reasoning questions: Dev2.
        sft: Stage 3, fine-tuning of the base on what Dev2 answered right: Dev3.
        evaluation: How the policy of every stage is measured.
        reasoning_teacher: Dev3, reinforced on reasoning questions; a teacher of `distilled`.
        helpfulness_model, safety_model: Reward models of the last stage.
        judge: The judge that `judged` uses.
        traces, rejection: Rejection sampling of answers to reasoning questions.
        judged: Rejection sampling of answers to general questions. No fine-tuning learns the data's
            answers to these questions.
        scenarios: The last stage as reinforcement. It is the only stage that may reinforce on
            questions of both kinds. Its rewards may name REWARD_MODELS.
        general_teacher: Asks only general questions. Its rewards may name REWARD_MODELS.
        distilled: The last stage as distillation.
        world: The name of the world with the reasoning and general questions of the stages.
        data: Replaces the world. Reward models then learn the user's own preferences, from their
            data.path; a judge needs a world.
    """

    zero: ReinforceSettings
    traces: RejectionSettings
    cold_start: R1FineTuneSettings
    reasoning: ReinforceSettings
    rejection: RejectionSettings
    sft: R1FineTuneSettings
    evaluation: EvaluationSettings
    scenarios: ReinforceSettings | None = None
    reasoning_teacher: ReinforceSettings | None = None
    general_teacher: ReinforceSettings | None = None
    distilled: DistilledSettings | None = None
    world: str = "bilingual"
    data: OwnDataSettings | None = None
    judge: JudgeTrainingSettings | None = None
    judged: RejectionSettings | None = None
    helpfulness_model: RewardTrainingSettings | None = None
    safety_model: RewardTrainingSettings | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, stage in self.reinforced().items():
            if stage.general and (name != "scenarios" or stage.general.path is not None):
                raise ValueError(
                    f"{name}.general={stage.general}: stage 4 asks the world's general questions, and no "
                    "other stage does; set scenarios.general, without a path"
                )
            with at(name):
                stage.check_no_effort()
        self._check_last()
        template = self.data.template if self.data is not None else self._template()
        for name in PREFERENCE_STAGES:
            self._check_preferences(name, template)
        if (self.judge is None) != (self.judged is None):
            missing = "judge" if self.judge is None else "judged"
            raise ValueError(
                f"{missing}=None: judge trains the judge that judged uses; set both blocks, or neither"
            )

    def _template(self):
        """Return the template of the world.

        Raises:
            ValueError: The base reads a corpus that is not the world's.
        """
        world = find_world(self.world)
        if self.base is not None and self.base.corpus not in world.corpora:
            raise ValueError(
                f"base.corpus={self.base.corpus!r} is not a corpus of world={self.world!r}; "
                f"{suggest(self.base.corpus, world.corpora)}"
            )
        return world.template

    def _check_preferences(self, name, template):
        """Raise ValueError unless a block has preferences to read, in the prompts' template.

        They are the world's; with the user's own data, which replaces the world, they are the
        user's too.

        Args:
            name: The name of the block.
            template: The template of the prompts.
        """
        block = getattr(self, name)
        if block is None:
            return
        if self.data is not None and name == "judge":
            raise ValueError(
                "judge learns pairs of a world, and data replaces the world; leave out judge and judged"
            )
        if self.data is not None and block.data.path is None:
            raise ValueError(
                f"{name}.data.path=None: data replaces the world and its preferences; set the path of your "
                f"own preferences, or leave out {name}"
            )
        if self.data is None and block.data.path is not None:
            raise ValueError(
                f"{name}.data.path={block.data.path!r}: the preferences of world={self.world!r} are learned; "
                "leave the path out"
            )
        if block.data.template != template:
            raise ValueError(
                f"{name}.data.template={block.data.template!r} is not the template of the other stages; set "
                f"it to {template!r}"
            )

    def _check_last(self):
        """Raise ValueError if there is no last stage, or teachers or reward models do not fit it.

        That is if a teacher is not trained, or if a teacher or reward model is trained for nothing.
        """
        if self.scenarios is None and self.distilled is None:
            raise ValueError(
                "scenarios=None and distilled=None leave the run without its last stage; set one, or both"
            )
        teachers = {} if self.distilled is None else self.distilled.teachers
        policies = self.teaching()
        for name, teacher in teachers.items():
            # A checkpoint may teach any task
            if teacher.stage is None:
                continue
            if teacher.stage not in policies:
                raise ValueError(
                    f"distilled.teachers.{name}.stage={teacher.stage!r} is no stage that can teach; "
                    f"{suggest(teacher.stage, policies)}"
                )
            if teacher.stage in SPECIALISTS and getattr(self, teacher.stage) is None:
                raise ValueError(
                    f"distilled.teachers.{name}.stage={teacher.stage!r}, and {teacher.stage}=None trains "
                    "none; set that block, or the teacher to another stage"
                )
            if SPECIALISTS.get(teacher.stage, teacher.task) != teacher.task:
                raise ValueError(
                    f"distilled.teachers.{name}.task={teacher.task!r} is not what {teacher.stage} learns; "
                    f"set it to {SPECIALISTS[teacher.stage]!r}"
                )
        if teachers and all(teacher.stage == "sft" for teacher in teachers.values()):
            raise ValueError(
                "distilled.teachers are all stage='sft', which is the student itself, and teach it nothing; "
                "set one to another stage"
            )
        paying = {model for name in self.reinforced() for model in self.models_for(name)}
        for name in self.reward_models():
            if name not in paying:
                raise ValueError(
                    f"{name} is a reward model that pays nothing: set its weight in "
                    "scenarios.general.rewards or general_teacher.rewards, or leave it out"
                )
        for name in SPECIALISTS:
            if getattr(self, name) is not None and name not in {t.stage for t in teachers.values()}:
                raise ValueError(
                    f"{name} trains a teacher that distilled.teachers does not name; leave it out"
                )

    def reinforced(self) -> dict[str, ReinforceSettings]:
        """Return {name: settings} of the stages of reinforcement that this config has."""
        blocks = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: block for name, block in blocks if isinstance(block, ReinforceSettings)}

    @classmethod
    def teaching(cls) -> list[str]:
        """Return the names of the stages with policies that may teach the last one."""
        kinds = {ReinforceSettings, R1FineTuneSettings}
        hints = typing.get_type_hints(cls)
        return [
            name
            for name, hint in hints.items()
            if name not in LAST_STAGES and kinds & {hint, *typing.get_args(hint)}
        ]

    def models_for(self, name: str) -> list[str]:
        """Return the names of the reward models that reward a stage of reinforcement."""
        stage = getattr(self, name)
        if name == "general_teacher":
            paid = set(stage.rewards)
        else:
            paid = set(stage.rewards) | set(stage.general.rewards) if stage.general else set()
        return [model for model in self.reward_models() if model in paid]

    def last_stages(self) -> list[str]:
        """Return the names in LAST_STAGES that this config has."""
        return [name for name in LAST_STAGES if getattr(self, name) is not None]

    def reward_models(self) -> dict[str, RewardTrainingSettings]:
        """Return {name: settings} of the reward models that this config trains."""
        blocks = zip(REWARD_MODELS, (self.helpfulness_model, self.safety_model), strict=True)
        return {name: block for name, block in blocks if block is not None}

    def paying(self) -> list[str]:
        """Return the names of the stages that train a reward model or a judge."""
        return [*self.reward_models(), *(["judge"] if self.judge is not None else [])]
