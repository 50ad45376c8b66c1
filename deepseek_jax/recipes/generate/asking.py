"""The stages of data generation: vary the questions, answer them, filter the answers.

Tests: tests/recipes/generate/test_run.py, tests/recipes/generate/test_conversations.py.
"""

import dataclasses
import json
from pathlib import Path

import jax
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.errors import at
from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.mesh import mesh_of
from deepseek_jax.parallel.processes import barrier, first_process
from deepseek_jax.recipes.conversing import (
    conversing,
    try_environment,
)
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.generate.sources import (
    AskedQuestions,
    MeasuredOn,
    SampleRewards,
    own_mesh,
)
from deepseek_jax.recipes.kinds.measure import scored_answer_programs
from deepseek_jax.recipes.stage import AnswerPlan, Context, Stage, StageFolder
from deepseek_jax.reinforce.scenarios import deciding, say_deciding
from deepseek_jax.rollout.policy import Policy, check_answers
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.sift import FATES, write_sifted
from deepseek_jax.synthesis.teacher import Teacher, check_opening

QUESTIONS = "questions.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Asks(Stage):
    """A stage in which the teacher answers.

    With several processes, each group of config.teacher_processes answers its share of the prompts,
    on a mesh of its devices.

    Attributes:
        whole: The settings of the whole config.
    """

    leaves_policy = False

    whole: GenerateSettings

    @override
    def sampling_mesh(self, mesh):
        return teacher_mesh(self.whole, mesh)

    def teacher(self, context: Context) -> Teacher:
        """Return the Teacher; it loads its policy only if there is something to answer."""

        def load():
            return load_teacher(self.whole, context, self.start)

        def make_teacher():
            group_mesh = own_mesh(self.whole, context)
            return Teacher(self.whole, load, group_mesh, context.run.should_stop)

        return context.once("teacher", make_teacher)

    def answer(self, context, folder: Path, examples, *, n: int, conversing_in=None, rewards=None):
        """Let the teacher answer examples n times, and write the chunks into a folder.

        Args:
            context: The context of the stage.
            folder: The folder for the chunks.
            examples: The questions, without prompt_ids.
            n: Completions for each example.
            conversing_in: The Environments of the answers; None for single turns.
            rewards: The Rewards that score the answers; None for no scores.
        """
        teacher = self.teacher(context)
        if conversing_in is not None:
            conversing_policy = conversing(teacher.policy, conversing_in, self.whole)
            answering_teacher = dataclasses.replace(teacher, load=lambda: conversing_policy)
        else:
            answering_teacher = teacher
        # launch has set the mesh of all processes; a teacher is on the devices of its own group
        with jax.set_mesh(own_mesh(self.whole, context)), at("config"):
            # This reads the checkpoint, which a complete stage does not need
            prompts = prompts_of(self.whole, answering_teacher.policy, examples)
            answering_teacher.answer(folder, prompts, n=n, rewards=rewards)


@dataclasses.dataclass(frozen=True, eq=False)
class Vary(Asks):
    """The questions to ask: the questions of the data, and variants of them.

    Variants are derived by rules and by the teacher.

    Attributes:
        questions: The questions of the data.
        measured_on: The evaluation sets, which the questions must not contain.
    """

    questions: AskedQuestions
    measured_on: MeasuredOn

    @override
    def is_left(self, folder):
        return (folder / QUESTIONS).exists()

    @override
    def run(self, context):
        def ask(name, examples):
            self.answer(context, context.stage_folder / name, examples, n=1)
            return context.stage_folder / name

        with at("config"):
            all_questions, fates = augmented(
                self.whole, self.questions.both[0], self.measured_on.evaluation(), ask
            )
        if first_process():
            content = {"questions": all_questions, "fates": fates}
            write_whole(context.stage_folder / QUESTIONS, json.dumps(content, ensure_ascii=False))
        barrier("the questions are there")


@dataclasses.dataclass(frozen=True, eq=False)
class Ask(Asks):
    """A teacher's answers to every question, with their rewards (arXiv:2501.12948, appendix B.3.3).

    Attributes:
        questions: The questions of the data.
        varied: The folder of the stage Vary, with all questions to ask.
        rewards: The rewards of the answers.
    """

    questions: AskedQuestions
    varied: StageFolder
    rewards: SampleRewards

    @override
    def is_left(self, folder):
        # The teacher skips chunks that are there
        return False

    @override
    def check(self, config, mesh):
        with at("config.sampling"):
            check_answers(config, self.whole.sampling)

    @override
    def check_data(self, context):
        settings = self.whole
        with at("config"):
            self._check_groups()
        super().check_data(context)
        # Wrong rewards, questions and checkpoints raise before anything is trained
        rewards, (questions, _) = self.rewards.read(context), self.questions.both
        with at("rewards"):
            rewards.check(questions)
        say_deciding(settings, rewards)
        environments = self.rewards.environments(context)
        try_environment(environments, questions)
        policy = dataclasses.replace(context.policy, opening=settings.data.opening)
        prompts_of(settings, conversing(policy, environments, settings), questions)

    def _check_groups(self):
        """Raise ValueError if several groups of processes would hold conversations."""
        group_processes, num_processes = self.whole.teacher_processes, jax.process_count()
        if self.whole.converses and group_processes < num_processes:
            # After a turn all processes exchange the results of their tools
            raise ValueError(
                f"teacher_processes={group_processes} of {num_processes} processes makes several teachers, "
                f"and all of them hold conversations together; set it to {num_processes}, or leave out tools "
                "and environment"
            )

    def programs(self, config, mesh, others):
        """Return the programs of one teacher's answers and of their scores.

        They run on the devices of the teacher's processes, where reward models and judges score the
        answers.
        """
        settings, sampling = self.whole, self.whole.sampling
        answering = AnswerPlan(
            sampling,
            settings.chunk_size,
            sampling.samples_per_prompt,
            sampling.max_prompt_length,
            # A base is in float32, as it was trained; a checkpoint is read in the dtype that it
            # computes in
            dtype="float32" if settings.init_from is None else config.dtype,
            turns=settings.most_turns(),
        )
        group_mesh = teacher_mesh(settings, mesh)
        return scored_answer_programs(
            self, config, group_mesh, answering, self.rewards, scores=True
        )

    def run(self, context):
        """Write the chunks into the stage's folder."""
        self.answer(
            context,
            context.stage_folder,
            read_json(self.varied.read(context) / QUESTIONS)["questions"],
            n=self.whole.sampling.samples_per_prompt,
            conversing_in=self.rewards.environments(context),
            rewards=self.rewards.read(context),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Sift(Stage):
    """The dataset of the answers that pass the filters.

    Attributes:
        samples: The folder of the stage Ask.
    """

    leaves_policy = False

    whole: GenerateSettings
    rewards: SampleRewards
    measured_on: MeasuredOn
    samples: StageFolder

    @override
    def is_left(self, folder):
        return False

    def run(self, context):
        """Write the dataset into the stage's folder."""
        with at("config"):
            accuracy = deciding(self.whole, self.rewards.read(context))
            settings = dataclasses.replace(self.whole, accuracy=accuracy)
            write_sifted(
                settings,
                self.samples.read(context),
                self.measured_on.evaluation(),
                context.stage_folder,
            )

    @override
    def measurements(self):
        return {self.name: f"{self.name}/{FATES}"}

    @override
    def scores(self, contents):
        # No interval: completions of one question are alike, and the fates are not counted by
        # question
        counts_by_origin = contents.values()
        num_kept, num_asked = (
            sum(counts["kept"] for counts in counts_by_origin),
            sum(sum(counts.values()) for counts in counts_by_origin),
        )
        return {"kept_share": [num_kept / num_asked, None, None]}


def load_teacher(settings: GenerateSettings, context: Context, name: str) -> Policy:
    """Load the teacher's Policy onto the mesh of this process's group.

    Args:
        settings: The settings of the whole config.
        context: The context of the stage.
        name: The name of the stage that produces the teacher.
    """
    group_mesh = own_mesh(settings, context)
    policy = context.load(name, trained=False, mesh=group_mesh)
    with at("adapter"):
        policy = policy.with_adapter_of(settings.adapter, group_mesh)
    return dataclasses.replace(policy, opening=settings.data.opening)


def prompts_of(settings: GenerateSettings, policy: Policy, examples: list) -> list[dict]:
    """Return the examples with their prompt_ids, without prompts above sampling.max_prompt_length.

    Raises:
        ValueError: As Policy.with_fitting_prompts and check_opening do.
    """
    sampling = settings.sampling
    limit = Limit(sampling.max_completion_length, sampling.max_prompt_length)
    with at("sampling"):
        prompts = policy.with_fitting_prompts(examples, limit, "generation")
    with at("data"):
        # One prompt is enough, because the template ends all prompts in the same way
        check_opening(policy, prompts[0]["prompt_ids"])
    return prompts


def teacher_mesh(settings: GenerateSettings, mesh: Mesh) -> Mesh:
    """Return the mesh of the first teacher, for a plan.

    It is as parallel.mesh.group_mesh, for devices that may not be there. A mesh of CPU devices is
    returned as it is.
    """
    if mesh.devices.flat[0].platform == "cpu":
        return mesh
    devices = [
        device
        for device in sorted(mesh.devices.flat, key=lambda device: device.id)
        if device.process_index < settings.teacher_processes
    ]
    return mesh_of(mesh, devices)
