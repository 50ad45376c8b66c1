"""A stage of distillation (arXiv:2501.12948, section 2.4): a student learns texts, and what a teacher says of
them, by the terms of its loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_adapter, is_orbax
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Held, Program, beside, everywhere, moments_of, update_program
from deepseek_jax.data.batches import abstract_batch, abstract_rows
from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import CACHED, PROJECTIONS, SAMPLED, STUDENT
from deepseek_jax.distill.source import HELD_OUT_LOSS, sampled_rows
from deepseek_jax.distill.update import jitted_update
from deepseek_jax.errors import at
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.distill.settings import StudentSettings
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.measure import answer_programs
from deepseek_jax.recipes.stage import Answering, Kind
from deepseek_jax.recipes.start import check_positions, check_rows


def check_student_rows(student: StudentSettings, mesh: Mesh):
    """Raise ValueError, naming the fields, unless the rows of texts and of samples split over the mesh."""
    check_rows(student, mesh)
    if (on_policy := student.loss.on_policy) is not None:
        rows, length = on_policy.prompts, student.sequence_length
        with at(f"loss.on_policy.prompts={rows}"):
            check_batch(mesh, rows, length, micro_batches=student.micro_batches)


def _check(work: Work):
    check_student_rows(work.settings, work.mesh)
    check_positions(work.settings, work.config)


def _covers(work: Work):
    return {
        "settings": work.job.about(work.settings),
        "texts": work.job.texts_hash,
        "batches": work.job.batching(),
    }


def _compiles(work: Work) -> list[Program]:
    """The student's update beside the frozen teacher, and its own rollout where it learns on-policy."""
    student, config, mesh = work.settings, work.config, work.mesh
    loss, teacher = student.loss, work.job.teacher_config(work)
    # All tokens shared: the most that the term can compare
    every = range(min(config.vocab_size, teacher.vocab_size)) if loss.needs("matched") else ()
    objective = work.job.student(work).objective_of(
        config, teacher, (tuple(every), tuple(every)) if every else ()
    )
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
    state, batch = create.eval_shape(params), longest_batch(student, mesh)
    name = f"{work.prefix}update"
    update = update_program(name, step, state, batch, config=config, mesh=mesh)
    flops = update.tokens * objective.flops_per_token(
        student.sequence_length,
        cached=not loss.reads_teacher(),
        frozen=student.adapter is not None,
    )
    arguments = (*update.arguments, frozen)
    planned = [dataclasses.replace(update, arguments=arguments, flops=flops)]
    if loss.on_policy is not None:
        options = loss.on_policy
        longest = student.sequence_length - options.max_completion_length
        asked = Answering(options, options.prompts, prompt_length=longest)
        sampled = answer_programs(work.prefix, config, mesh, asked, student.adapter)
        taught = Held("the teacher's parameters", frozen)
        planned += beside(sampled, moments_of(state), taught)
    return planned


def longest_batch(student: StudentSettings, mesh: Mesh):
    """The batch of a student's update as ShapeDtypeStructs with shardings: that of rows without padding."""
    rows, length, loss, features = student.batch_size, student.sequence_length, student.loss, {}
    if loss.top_k is not None:
        ids = np.zeros((length, loss.top_k), np.int32)
        features |= dict(zip(CACHED, (ids, np.float32(ids), np.float32(ids[:, 0])), strict=True))
    if loss.needs("matched", "sorted"):
        index = np.zeros(length, np.int32)
        features |= dict(teacher_tokens=index, teacher_index=index, exact=index > 0)
    scalars = ("temperature", HELD_OUT_LOSS)
    batch = abstract_rows(mesh, rows, length, weighed=True, features=features, scalars=scalars)
    if loss.on_policy is not None:
        completion = [0] * loss.on_policy.max_completion_length
        pair = [0] * (length - len(completion)), completion
        sampled = abstract_batch(mesh, sampled_rows([pair], length), loss.on_policy.prompts)
        batch |= {SAMPLED + name: leaf for name, leaf in sampled.items()}
    return batch


def _run(work: Work):
    """The student."""
    taught = work.job.load_taught(work)
    policy = work.job.load_learner(work)
    return work.job.student(work).train(policy, taught)


DISTIL = Kind(
    _check,
    _compiles,
    _run,
    _covers,
    is_left=lambda folder: is_orbax(folder / "params") or is_adapter(folder / "adapter"),
)
