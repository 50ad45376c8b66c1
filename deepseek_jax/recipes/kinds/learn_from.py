"""A stage of distillation from a teacher of each task (V4's last stage, arXiv:2606.19348).

The student learns on its own samples.

Tests: tests/recipes/r1/test_list.py, tests/recipes/r1/test_run.py.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, ResidentArrays, beside, moments_of, policy_params
from deepseek_jax.data.batches import abstract_batch
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.distill.taught import jitted_update, learn_from_teachers, merged
from deepseek_jax.distill.teacher_checks import check_questions, check_rows, check_teacher
from deepseek_jax.distill.teacher_settings import TaughtSettings
from deepseek_jax.distill.teachers import (
    HIDDEN,
    Teacher,
    for_teacher,
    jitted_states,
    teacher_batch,
)
from deepseek_jax.errors import at
from deepseek_jax.models.config import ModelConfig, how_to_run
from deepseek_jax.models.heads import head_weight
from deepseek_jax.models.network_config import require_model_config
from deepseek_jax.models.reward import decoder_params
from deepseek_jax.parallel.shard import batch_sharding
from deepseek_jax.recipes.kinds.reinforce import amount_of
from deepseek_jax.recipes.origin import digest, planned_model
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.reinforce.batch import longest_group
from deepseek_jax.rollout.policy import Policy, load_policy
from deepseek_jax.rollout.programs import Workload, rollout_programs
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.worlds.registry import named_tokenizer


def taught_programs(
    name: str,
    settings: TaughtSettings,
    config: ModelConfig,
    teachers: dict[str, ModelConfig],
    mesh: Mesh,
) -> list[Program]:
    """Return the programs of a step of learning from teachers.

    They are the rollout; for each teacher, its forward pass over its samples and the student's
    gradient from it; and the update. Every prompt and every completion counts as the longest. While
    a teacher reads, the devices hold the student's state too, and also the hidden states of all
    teachers for a step, until those for the next step are there.

    Args:
        name: The prefix of the programs' names.
        settings: The settings of the stage.
        config: The student's ModelConfig.
        teachers: {name: the teacher's ModelConfig}.
        mesh: The mesh of the run.
    """
    rollout = settings.rollout
    programs = rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=rollout.longest(), slots=rollout.slots),
        Workload(settings.questions_per_step(), rollout.max_prompt_length, settings.group_size),
        name=name,
    )
    params = abstract_tree(config, mesh)
    create, update = jitted_update(settings, config, params, mesh, {})
    state = create.eval_shape(params)
    gradients = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), state.params)
    batches = {t: _longest_batch(settings, settings.teachers[t].task, mesh) for t in teachers}
    held_states = {
        t: _hidden(t, teacher_config, batches[t], mesh) for t, teacher_config in teachers.items()
    }
    former_states = [
        states._replace(name=f"{states.name}, a step before") for states in held_states.values()
    ]
    programs = beside(programs, moments_of(state), *former_states)
    # The same placement as the update counter: on every device
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=state.step.sharding)
    for teacher, teacher_config in teachers.items():
        batch = batches[teacher]
        amount, teacher_params = amount_of(config, batch), abstract_tree(teacher_config, mesh)
        # A forward pass is a third of an update of all weights
        reading_amount = amount._replace(flops=amount_of(teacher_config, batch).flops / 3)
        arguments = decoder_params(teacher_params), for_teacher(batch)
        states_name = f"{name}{teacher}: hidden states"
        other_states = [states for other, states in held_states.items() if other != teacher]
        held_arrays = policy_params(params), moments_of(state), *former_states, *other_states
        states_program = Program(
            states_name, jitted_states(teacher_config, mesh), arguments, mesh, *reading_amount
        )
        programs += beside([states_program], *held_arrays)

        def gradient_arguments(
            hidden_states, batch=batch, teacher_params=teacher_params, teacher_config=teacher_config
        ):
            return (
                gradients,
                state,
                batch | {HIDDEN: hidden_states},
                rng,
                head_weight(teacher_config, teacher_params),
            )

        gradient_name = f"{name}{teacher}: gradient"
        gradient_program = Program(
            gradient_name, update.add, gradient_arguments, mesh, *amount, needs=(states_name,)
        )
        programs += beside([gradient_program], *other_states)

    def update_arguments(*results):
        metrics_by_teacher = {
            teacher: metrics for teacher, (_, metrics) in zip(teachers, results, strict=True)
        }
        return state, gradients, jax.eval_shape(merged, metrics_by_teacher)

    needs = tuple(f"{name}{teacher}: gradient" for teacher in teachers)
    apply_program = Program(
        f"{name}update", update.apply, update_arguments, mesh, 0, 0.0, "", needs=needs
    )
    return [*programs, *beside([apply_program], *held_states.values())]


def _hidden(teacher: str, config: ModelConfig, batch, mesh: Mesh) -> ResidentArrays:
    """Return the ResidentArrays of a teacher's hidden states for its batch."""
    function, sharding = jitted_states(config, mesh), batch_sharding(mesh)
    hidden_states = jax.eval_shape(
        function, decoder_params(abstract_tree(config, mesh)), for_teacher(batch)
    )
    return ResidentArrays(f"hidden states of {teacher}", hidden_states.update(sharding=sharding))


def _longest_batch(settings: TaughtSettings, task: str, mesh: Mesh):
    """Return the largest batch of a task, without a teacher's hidden states."""
    group_batch = teacher_batch([longest_group(settings)], settings, mesh, 1.0, 1.0)
    return abstract_batch(mesh, group_batch, settings.prompts_per_step[task])


class TeacherSource(Source):
    """A teacher of one task."""

    def config(self, others: Mapping[str, ModelConfig]) -> ModelConfig:
        """Return the teacher's ModelConfig.

        Args:
            others: {stage: the ModelConfig of the policy that it produces}.
        """
        raise NotImplementedError

    def tokenizer(self, context: Context) -> Tokenizer:
        """Return the teacher's tokenizer."""
        raise NotImplementedError

    def read(self, context: Context) -> Policy:
        """Return the teacher's Policy."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class StageTeacher(TeacherSource):
    """A teacher that a stage produces."""

    stage: str

    @property
    @override
    def reads(self):
        return (self.stage,)

    @override
    def config(self, others):
        return others[self.stage]

    @override
    def tokenizer(self, context):
        return context.policies[self.stage].tokenizer

    @override
    def read(self, context):
        return context.load(self.stage)


@dataclasses.dataclass(frozen=True, eq=False)
class CheckpointTeacher(TeacherSource):
    """A teacher from a checkpoint.

    Attributes:
        path: The path or hub name of the checkpoint.
        model: The block of the config that says how to run it.
        template: The template of its Policy.
    """

    path: str
    model: dict
    template: str

    @override
    def covers(self, context):
        return digest(self.path)

    @override
    def check(self, context):
        check_checkpoint(self.path)

    @override
    def config(self, others):
        # The architecture is left out: it has to be the checkpoint's
        return planned_model(how_to_run(self.model), self.path, "path")

    @override
    def tokenizer(self, context):
        return named_tokenizer(self.path)

    @override
    def read(self, context):
        run_fields = how_to_run(self.model)
        return load_policy(self.path, run_fields, context.mesh, template=self.template)


@dataclasses.dataclass(frozen=True, eq=False)
class Teachers(Source):
    """All teachers, by their names in the settings."""

    by_name: Mapping[str, TeacherSource]

    @property
    @override
    def reads(self):
        return tuple(name for teacher in self.by_name.values() for name in teacher.reads)

    @override
    def covers(self, context):
        return {name: teacher.covers(context) for name, teacher in self.by_name.items()}

    @override
    def check(self, context):
        for name, teacher in self.by_name.items():
            with at(f"teachers.{name}"):
                teacher.check(context)

    def configs(self, others: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
        """Return {name: ModelConfig} of the teachers.

        Args:
            others: {stage: the ModelConfig of the policy that it produces}.
        """
        configs = {}
        for name, teacher in self.by_name.items():
            with at(f"teachers.{name}"):
                configs[name] = require_model_config(teacher.config(others), "distillation")
        return configs


class TaskQuestions(Source):
    """The questions of each task."""

    def read(self, context: Context) -> dict[str, list[dict]]:
        """Return {task: its examples}, without their prompt_ids."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class LearnFrom(Stage):
    """Distillation from a teacher of each task, on samples of the policy that it begins from."""

    settings: TaughtSettings
    questions: TaskQuestions
    teachers: Teachers

    @override
    def check(self, config, mesh):
        require_model_config(config, "distillation")
        check_rows(self.settings, mesh)

    @override
    def check_data(self, context):
        super().check_data(context)
        policy = context.policy
        policy_configs = {
            name: stage_policy.config for name, stage_policy in context.policies.items()
        }
        teacher_configs = self.teachers.configs(policy_configs)
        for name, teacher in self.teachers.by_name.items():
            with at(f"teachers.{name}"):
                tokenizer = teacher.tokenizer(context)
                check_teacher(policy.config, policy.tokenizer, teacher_configs[name], tokenizer)
        check_questions(self.settings, teacher_configs, self._fitting_questions(context))

    def _fitting_questions(self, context):
        """Return {task: the questions that fit}, with their prompt_ids."""
        limit = self.settings.rollout.limit()
        with at("rollout"):
            return {
                task: context.policy.with_fitting_prompts(examples, limit) if examples else []
                for task, examples in self.questions.read(context).items()
            }

    @override
    def programs(self, config, mesh, others):
        teacher_configs = self.teachers.configs(others)
        return taught_programs(self.prefix, self.settings, config, teacher_configs, mesh)

    @override
    def run(self, context):
        teachers = {
            name: Teacher.waiting(teacher.read(context))
            for name, teacher in self.teachers.by_name.items()
        }
        with self.at():
            questions = self._fitting_questions(context)
        policy = context.load_start()
        params = learn_from_teachers(self.settings, policy, teachers, questions, context.run)
        return policy.with_params(params)
