"""The programs of a distillation, for a plan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Held, Program, beside, everywhere, moments_of, update_program
from deepseek_jax.data.batches import TOTALS, abstract_batch, abstract_rows
from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import CACHED, PROJECTIONS, SAMPLED, STUDENT
from deepseek_jax.distill.source import HELD_OUT_LOSS
from deepseek_jax.distill.update import jitted_update
from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig
from deepseek_jax.recipes.distill.checks import check_student_rows
from deepseek_jax.recipes.distill.settings import DistillSettings, StartSettings, StudentSettings
from deepseek_jax.recipes.distill.student import StudentRun
from deepseek_jax.recipes.planning import (
    answer_programs,
    base_programs,
    fine_tuning_programs,
    planned_model,
)
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.programs import reinforcement_programs


def programs(settings: DistillSettings, mesh: Mesh):
    """The teacher's programs, then those of each start, each student and of the scores: [Program]."""
    with at("config"):
        check_slots(settings, mesh)
    teacher, planned = _teacher(settings, mesh)
    starts = {}
    for name, start in settings.starts.items():
        with at(f"config.starts.{name}"):
            starts[name] = _start(start)
            planned += _named(f"{name}: ", base_programs(starts[name], start.base, mesh))
    for name, student in settings.students.items():
        with at(f"config.students.{name}"):
            check_student_rows(student, mesh)
        planned += _student(settings, name, student, starts[student.start], teacher, mesh)
    for name, student in settings.reinforced.items():
        with at(f"config.reinforced.{name}"):
            planned += reinforcement_programs(f"{name}: ", student, starts[student.start], mesh)
    if settings.evaluation is None:
        return planned
    asked = settings.evaluation
    for name, config in starts.items():
        sizes = dict(prompts=asked.num_questions, n=asked.samples)
        planned += answer_programs(f"evaluation of {name}: ", config, mesh, asked, **sizes)
    return planned


def _teacher(settings: DistillSettings, mesh: Mesh):
    """(the teacher's ModelConfig or None, its Programs)."""
    teacher, text = settings.teacher, settings.text
    if teacher is None:
        return None, []
    with at("config.teacher"):
        config = planned_model(teacher.model, teacher.path)
        planned = _named("teacher: ", base_programs(config, teacher.base, mesh))
        if teacher.fine_tune is not None:
            planned += fine_tuning_programs("teacher: ", teacher.fine_tune, config, mesh)
    if text is not None:
        sizes = dict(prompts=text.num_prompts, n=text.samples_per_prompt)
        planned += answer_programs("text: ", config, mesh, text, dtype=config.dtype, **sizes)
    return config, planned


def _start(start: StartSettings):
    config = planned_model(start.model, start.init_from)
    if start.max_position_embeddings is None:
        return config
    return dataclasses.replace(config, max_position_embeddings=start.max_position_embeddings)


def _named(prefix: str, programs: list[Program]):
    return [dataclasses.replace(program, name=prefix + program.name) for program in programs]


def _student(
    settings: DistillSettings,
    name: str,
    student: StudentSettings,
    config: ModelConfig,
    teacher: ModelConfig | None,
    mesh: Mesh,
):
    """The student's update beside the frozen teacher, and its own rollout where it learns on-policy."""
    loss = student.loss
    teacher = teacher if loss.asks_teacher() else None
    # All tokens shared: the most that the term can compare
    every = range(min(config.vocab_size, teacher.vocab_size)) if loss.needs("matched") else ()
    run = StudentRun(settings, name, student, {}, None)
    objective = run.objective_of(config, teacher, (tuple(every), tuple(every)) if every else ())
    params, frozen = abstract_tree(config, mesh, adapter=student.adapter), {}
    if loss.needs("hidden"):
        shape = jax.eval_shape(
            lambda: init_projections(
                jax.random.key(0), config.num_hidden_layers, config.hidden_size, teacher.hidden_size
            )
        )
        projections = everywhere(mesh, shape.shape, jnp.float32)
        params = {STUDENT: params, PROJECTIONS: projections}
    if teacher is not None and loss.reads_teacher():
        frozen = abstract_tree(teacher, mesh, teacher.dtype)
    create, step = jitted_update(student, objective, params, mesh)
    state, batch = create.eval_shape(params), _batch(student, mesh)
    update = update_program(f"{name}: update", step, state, batch, config=config, mesh=mesh)
    flops = update.tokens * objective.flops_per_token(
        student.sequence_length,
        cached=not loss.reads_teacher(),
        frozen=student.adapter is not None,
    )
    arguments = (*update.arguments, frozen)
    planned = [dataclasses.replace(update, arguments=arguments, flops=flops)]
    if loss.on_policy is not None:
        options, sizes = loss.on_policy, dict(prompts=loss.on_policy.prompts)
        sizes["adapter"] = student.adapter
        sizes["prompt_length"] = student.sequence_length - options.max_completion_length
        sampled = answer_programs(f"{name}: ", config, mesh, options, **sizes)
        taught = Held("the teacher's parameters", frozen)
        planned += beside(sampled, moments_of(state), taught)
    return planned


def _batch(student: StudentSettings, mesh: Mesh):
    """The batch of a student's update as ShapeDtypeStructs with shardings."""
    rows, length, loss = student.batch_size, student.sequence_length, student.loss
    scalars = (*TOTALS, "temperature", HELD_OUT_LOSS)
    batch = abstract_rows(mesh, rows, length, weighed=True, scalars=scalars)
    shapes = {}
    if loss.top_k is not None:
        sizes = (rows, length, loss.top_k), (rows, length, loss.top_k), (rows, length)
        dtypes = np.int32, np.float32, np.float32
        shapes |= dict(zip(CACHED, zip(sizes, dtypes, strict=True), strict=True))
    if loss.needs("matched", "sorted"):
        names = ("teacher_tokens", "teacher_tokens_segment_ids", "teacher_index")
        shapes |= {name: ((rows, length), np.int32) for name in names}
        shapes["exact"] = (rows, length), np.bool_
    if loss.on_policy is not None:
        sampled = abstract_rows(mesh, loss.on_policy.prompts, length, scalars=("normalizer",))
        batch |= {SAMPLED + name: leaf for name, leaf in sampled.items()}
    return batch | abstract_batch(mesh, shapes)
