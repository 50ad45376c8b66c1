"""A student's training: the objective's update, with the teacher's parameters beside it, in the loop."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import PROJECTIONS
from deepseek_jax.distill.source import HELD_OUT_LOSS, without_projections
from deepseek_jax.distill.terms import check_terms, gradient_norms
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.phase import run_phase, state_maker
from deepseek_jax.training.step import make_train_step, over_micro_batches


def train_student(
    settings, objective, params, teacher_params, source, mesh, folder, *, phase, writer, should_stop
):
    """Train a student after its teacher: -> params. Resumes from folder; the params given are used up.

    settings: StudentSettings. objective: distill.objective.Objective. teacher_params: never changed, {} where
    no term asks a teacher. source: DistillSource. At its first update every term that counts must have a
    value and a gradient, see distill.terms.check_terms, which raises ValueError.
    """
    if objective.weights.get("hidden"):
        params = params | {PROJECTIONS: _projections(objective, mesh, settings.seed)}
    tx = settings.make_optimizer()
    create, placed = state_maker(params, tx, mesh)
    told = None if settings.plateau is None else HELD_OUT_LOSS

    def train_step(state, batch, rng, teacher_params):
        def loss_fn(params, batch, rng):
            return objective.loss(params, batch, teacher_params)

        step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches, told=told)
        state, metrics = step(state, batch, rng)
        if told is not None:
            metrics["plateau_scale"] = state.opt_state[
                -1
            ].scale  # of the learning rate, from here on
        return state, metrics

    update = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))
    checked = False

    def step(state, batch, rng):
        nonlocal checked
        if not checked:
            checked = True
            if int(state.step) == 0:
                path = f"config.students.{phase}.loss"
                parts = settings.micro_batches
                check_first(objective, state.params, batch, teacher_params, path, parts)
        return update(state, batch, rng, teacher_params)

    params = run_phase(
        settings,
        create(params),
        step,
        source,
        folder,
        phase=phase,
        seed=settings.seed,
        writer=writer,
        should_stop=should_stop,
    )
    return without_projections(params)


def check_first(objective, params, batch, teacher_params, path, micro_batches=1):
    """Raise ValueError, naming its weight in the block `path`, for a term that counts and yet does nothing:
    its value is 0 or not finite, or its gradient in the student's own parameters.

    Takes the memory of an update: one micro-batch after another, whose values add up; of their gradients the
    largest norm counts. Returns the values by name.
    """

    @jax.jit
    def measure(params, batch, teacher_params):
        projections = {k: v for k, v in params.items() if k == PROJECTIONS}

        def of_part(part):
            def terms(own):
                return objective.terms(own | projections, part, teacher_params)

            return gradient_norms(terms, without_projections(params))

        values, norms = over_micro_batches(of_part, batch, micro_batches)
        return jax.tree.map(lambda x: x.sum(), values), jax.tree.map(lambda x: x.max(), norms)

    values, norms = jax.device_get(measure(params, batch, teacher_params))
    shown = (f"{name} {value:.4g} (gradient {norms[name]:.3g})" for name, value in values.items())
    say(f"terms at the first update: {', '.join(shown)}")
    check_terms(objective.weights, values, norms, path)
    return values


def _projections(objective, mesh, seed):
    widths = objective.student.hidden_size, objective.teacher.hidden_size
    matrices = init_projections(jax.random.key(seed), objective.student.num_hidden_layers, *widths)
    return jax.device_put(matrices, NamedSharding(mesh, PartitionSpec()))
