"""A stage of distillation (arXiv:2501.12948, section 2.4).

A student learns from texts and from a teacher, by the terms of its loss.

Tests: tests/recipes/distill/test_run.py, tests/recipes/test_programs.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import (
    Program,
    ResidentArrays,
    beside,
    everywhere,
    moments_of,
    update_program,
)
from deepseek_jax.data.batches import abstract_batch, abstract_rows
from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import CACHED, PROJECTIONS, SAMPLED, STUDENT
from deepseek_jax.distill.source import HELD_OUT_LOSS, sampled_rows
from deepseek_jax.distill.update import jitted_update
from deepseek_jax.errors import at
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network_config import require_model_config
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.checks import check_positions, check_rows
from deepseek_jax.recipes.distill.settings import StudentSettings
from deepseek_jax.recipes.distill.tasks import TaskTexts
from deepseek_jax.recipes.kinds.measure import answer_programs
from deepseek_jax.recipes.kinds.student import StudentRun, objective_of
from deepseek_jax.recipes.stage import AnswerPlan, Context, Source, Stage
from deepseek_jax.rollout.policy import Policy, check_answers


def check_student_rows(student: StudentSettings, mesh: Mesh):
    """Raise ValueError, naming the fields, unless text and sample rows split over the mesh."""
    check_rows(student, mesh)
    if (on_policy := student.loss.on_policy) is not None:
        rows, length = on_policy.prompts, student.sequence_length
        with at(f"loss.on_policy.prompts={rows}"):
            check_batch(mesh, rows, length, micro_batches=student.micro_batches)


@dataclasses.dataclass(frozen=True, eq=False)
class TaughtBy(Source):
    """The teacher of a student: the policy that a stage produces."""

    stage: str

    @property
    @override
    def reads(self):
        return (self.stage,)

    def read(self, context: Context) -> Policy:
        """Return the teacher's Policy, in its model's dtype."""
        return context.load(self.stage, trained=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Distil(Stage):
    """Training of a student on texts and with a teacher, by the terms of the student's loss.

    Attributes:
        teacher: None if no term needs one.
    """

    settings: StudentSettings
    texts: TaskTexts
    teacher: TaughtBy | None = None

    @override
    def check(self, config, mesh):
        require_model_config(config, "distillation")
        check_student_rows(self.settings, mesh)
        check_positions(self.settings, config)
        if (on_policy := self.settings.loss.on_policy) is not None:
            with at("loss.on_policy"):
                check_answers(config, on_policy)

    @override
    def programs(self, config, mesh, others):
        teacher = None if self.teacher is None else others[self.teacher.stage]
        return student_programs(self, config, mesh, teacher)

    @override
    def run(self, context):
        teacher = None if self.teacher is None else self.teacher.read(context)
        texts = self.texts.read(context)
        return StudentRun(self, texts, context.run, context.stage_folder).train(
            context.load_start(), teacher
        )


def student_programs(
    stage: Distil, config: ModelConfig, mesh: Mesh, teacher: ModelConfig | None
) -> list[Program]:
    """Return a student's update, and its rollout if it learns on-policy.

    The frozen teacher is on the devices during both.
    """
    student, loss = stage.settings, stage.settings.loss
    shared_ids = range(0)
    if loss.needs("matched"):
        assert teacher is not None
        # As if all tokens were shared: the most that the term can compare
        shared_ids = range(min(config.vocab_size, teacher.vocab_size))
    objective = objective_of(
        stage, config, teacher, (tuple(shared_ids), tuple(shared_ids)) if shared_ids else ()
    )
    params, teacher_params = abstract_tree(config, mesh, adapter=student.adapter), {}
    if loss.needs("hidden"):
        assert teacher is not None
        teacher_size = teacher.hidden_size
        abstract_projections = jax.eval_shape(
            lambda: init_projections(
                jax.random.key(0), config.num_hidden_layers, config.hidden_size, teacher_size
            )
        )
        projections = everywhere(mesh, abstract_projections.shape, jnp.float32)
        params = {STUDENT: params, PROJECTIONS: projections}
    if teacher is not None and loss.reads_teacher():
        teacher_params = abstract_tree(teacher, mesh, teacher.dtype)
    create, step = jitted_update(student, objective, params, mesh)
    state, batch = create.eval_shape(params), longest_batch(student, mesh)
    update_name = f"{stage.prefix}update"
    update = update_program(update_name, step, state, batch, config=config, mesh=mesh)
    flops = update.tokens * objective.flops_per_token(
        student.sequence_length,
        cached=not loss.reads_teacher(),
        frozen=student.adapter is not None,
    )
    # Only a program that needs results of earlier ones makes its arguments by a function
    assert isinstance(update.arguments, tuple)
    arguments = (*update.arguments, teacher_params)
    programs = [dataclasses.replace(update, arguments=arguments, flops=flops)]
    if loss.on_policy is not None:
        options = loss.on_policy
        prompt_length = student.sequence_length - options.max_completion_length
        answering = AnswerPlan(options, options.prompts, prompt_length=prompt_length)
        sampling_programs = answer_programs(stage.prefix, config, mesh, answering, student.adapter)
        held_teacher = ResidentArrays("the teacher's parameters", teacher_params)
        programs += beside(sampling_programs, moments_of(state), held_teacher)
    return programs


def longest_batch(student: StudentSettings, mesh: Mesh):
    """Return the largest batch of a student's update, as ShapeDtypeStructs with shardings.

    Its rows have no padding.
    """
    rows, length, loss = student.batch_size, student.sequence_length, student.loss
    features: dict[str, np.ndarray] = {}
    if loss.top_k is not None:
        ids = np.zeros((length, loss.top_k), np.int32)
        scores = ids.astype(np.float32)
        features |= dict(zip(CACHED, (ids, scores, scores[:, 0]), strict=True))
    if loss.needs("matched", "sorted"):
        index = np.zeros(length, np.int32)
        features |= dict(teacher_tokens=index, teacher_index=index, exact=index > 0)
    scalars = ("temperature", HELD_OUT_LOSS)
    batch = abstract_rows(mesh, rows, length, weighed=True, features=features, scalars=scalars)
    if loss.on_policy is not None:
        completion = [0] * loss.on_policy.max_completion_length
        pair = [0] * (length - len(completion)), completion
        sample_batch = abstract_batch(mesh, sampled_rows([pair], length), loss.on_policy.prompts)
        batch |= {SAMPLED + name: leaf for name, leaf in sample_batch.items()}
    return batch
