"""A stage that learns from a teacher of each task, on the student's own samples (V4's last stage,
arXiv:2606.19348).
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Held, Program, beside, moments_of, policy_params
from deepseek_jax.data.batches import abstract_batch
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
from deepseek_jax.models import ModelConfig, head_weight
from deepseek_jax.models.reward import decoder_params
from deepseek_jax.parallel.shard import batch_sharding
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.reinforce import amount_of
from deepseek_jax.recipes.stage import Kind
from deepseek_jax.reinforce.batch import longest_group
from deepseek_jax.rollout.programs import Asked, rollout_programs
from deepseek_jax.rollout.settings import AnswerOptions


def taught_programs(
    name: str,
    settings: TaughtSettings,
    config: ModelConfig,
    teachers: dict[str, ModelConfig],
    mesh: Mesh,
):
    """The rollout, each teacher's reading of its samples and the student's gradient from it, and the update:
    [Program]. name: a prefix of their names. config: the student's.

    Every prompt and every completion counts as the longest. The student's state is on the devices too while a
    teacher reads, and so are all teachers' hidden states of a step, until those of the next step are there.
    """
    rollout = settings.rollout
    planned = rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=rollout.longest(), slots=rollout.slots),
        Asked(settings.questions_per_step(), rollout.max_prompt_length, settings.group_size),
        name=name,
    )
    params = abstract_tree(config, mesh)
    create, update = jitted_update(settings, config, params, mesh, {})
    state = create.eval_shape(params)
    gradients = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), state.params)
    batches = {t: _longest_batch(settings, settings.teachers[t].task, mesh) for t in teachers}
    hidden = {t: _hidden(t, its, batches[t], mesh) for t, its in teachers.items()}
    former = [held._replace(name=f"{held.name}, a step before") for held in hidden.values()]
    planned = beside(planned, moments_of(state), *former)
    # Where the update counter is: on every device
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=state.step.sharding)
    for teacher, its in teachers.items():
        batch = batches[teacher]
        own, whole = amount_of(config, batch), abstract_tree(its, mesh)
        # A forward pass is a third of an update of all weights
        reading = own._replace(flops=amount_of(its, batch).flops / 3)
        asked = decoder_params(whole), for_teacher(batch)
        states = f"{name}{teacher}: hidden states"
        others = [held for other, held in hidden.items() if other != teacher]
        waiting = policy_params(params), moments_of(state), *former, *others
        read = Program(states, jitted_states(its, mesh), asked, mesh, *reading)
        planned += beside([read], *waiting)

        def learned(hidden, batch=batch, whole=whole, its=its):
            return gradients, state, batch | {HIDDEN: hidden}, rng, head_weight(its, whole)

        called, needs = f"{name}{teacher}: gradient", (states,)
        learn = Program(called, update.add, learned, mesh, *own, needs=needs)
        planned += beside([learn], *others)

    def applied(*results):
        found = {teacher: metrics for teacher, (_, metrics) in zip(teachers, results, strict=True)}
        return state, gradients, jax.eval_shape(merged, found)

    needs = tuple(f"{name}{teacher}: gradient" for teacher in teachers)
    apply = Program(f"{name}update", update.apply, applied, mesh, 0, 0.0, "", needs=needs)
    return [*planned, *beside([apply], *hidden.values())]


def _hidden(teacher: str, config: ModelConfig, batch, mesh: Mesh):
    """The Held of a teacher's hidden states for its batch."""
    function, place = jitted_states(config, mesh), batch_sharding(mesh)
    found = jax.eval_shape(
        function, decoder_params(abstract_tree(config, mesh)), for_teacher(batch)
    )
    return Held(f"hidden states of {teacher}", found.update(sharding=place))


def _longest_batch(settings: TaughtSettings, task: str, mesh: Mesh):
    """The largest batch of a task, without a teacher's hidden states."""
    one = teacher_batch([longest_group(settings)], settings, mesh, 1.0, 1.0)
    return abstract_batch(mesh, one, settings.prompts_per_step[task])


def _check(work: Work):
    check_rows(work.settings, work.mesh)


def _check_data(work: Work):
    """Raise ValueError where the student cannot learn from a teacher: another vocabulary, or no room."""
    job, configs, questions = work.job, {}, work.job.questions(work)
    for name, teacher in work.settings.teachers.items():
        with at(f"teachers.{name}"):
            job.check_teacher(teacher)
            configs[name] = job.teacher_config(teacher)
            tokenizer = job.teacher_tokenizer(teacher)
            check_teacher(work.config, job.policy.tokenizer, configs[name], tokenizer)
    check_questions(work.settings, configs, questions)


def _covers(work: Work):
    paths = {name: t.path for name, t in work.settings.teachers.items() if t.path is not None}
    checkpoints = {name: fingerprint(checkpoint_path(path)) for name, path in paths.items()}
    data = [work.job.asked(work), checkpoints]
    return {"settings": work.job.about(work.settings), "data": data}


def _compiles(work: Work):
    teachers = {}
    for name, teacher in work.settings.teachers.items():
        with at(f"teachers.{name}"):
            teachers[name] = work.job.teacher_config(teacher)
    return taught_programs(work.prefix, work.settings, work.config, teachers, work.mesh)


def _run(work: Work):
    """The student."""
    teachers = {
        name: Teacher.waiting(work.job.load_teacher(teacher))
        for name, teacher in work.settings.teachers.items()
    }
    with work.at():
        questions = work.job.questions(work)
    policy = work.start()
    params = learn_from_teachers(work.settings, policy, teachers, questions, work.phase)
    return policy.at(params)


LEARN_FROM = Kind(_check, _compiles, _run, _covers, _check_data)
