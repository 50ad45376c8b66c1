"""Train a student: one update from the objective and the teacher's parameters, and the loop."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import PROJECTIONS, STUDENT, Objective, without_projections
from deepseek_jax.distill.source import HELD_OUT_LOSS, DistillSource
from deepseek_jax.distill.terms import OF_LOGITS
from deepseek_jax.errors import at
from deepseek_jax.models.adapters import join, split
from deepseek_jax.parallel.processes import say
from deepseek_jax.training.loop import LOSS_TERMS, train
from deepseek_jax.training.micro_batches import over_micro_batches
from deepseek_jax.training.run import Run
from deepseek_jax.training.state import Create
from deepseek_jax.training.update import Update, UpdateOptions, create_update
from deepseek_jax.training.watch import Checks, check_terms
from deepseek_jax.trees import PyTree


def train_student(
    settings: Any,
    objective: Objective,
    params: PyTree,
    teacher_params: PyTree,
    source: DistillSource,
    run: Run,
) -> Any:
    """Train a student by its objective, and return the trained params.

    It resumes from run.folder, and donates the params. Before the first update check_first raises
    BrokenTerm for a term that has no effect.

    Args:
        settings: StudentSettings.
        teacher_params: Never changed; {} if no term needs a teacher.
    """
    if objective.weights.get("hidden"):
        projections = _projections(objective, run.mesh, settings.seed)
        params = {STUDENT: params, PROJECTIONS: projections}
    create, update = jitted_update(settings, objective, params, run.mesh)

    def step(state, batch, rng):
        return update(state, batch, rng, teacher_params)

    def before_first(state, batch):
        with at("loss"):
            check_first(objective, state.model, batch, teacher_params)

    state = create(params)
    flops_per_token = objective.flops_per_token(
        settings.sequence_length,
        cached=not settings.loss.reads_teacher(),
        frozen=state.frozen is not None,
    )
    # Terms of inner hidden states give the head no gradient, and not always the last layer
    reads_logits = settings.loss.needs(*OF_LOGITS, "on_policy")
    checks = Checks(
        terms=LOSS_TERMS,
        untrained=() if reads_logits else ("",),
        before_first=before_first,
        locate=lambda state, batch, rng: update.locate(state, batch, rng, teacher_params),
    )
    state = train(settings, state, step, source, run, settings.seed, checks, flops_per_token)
    return without_projections(state.model)


def jitted_update(
    settings, objective: Objective, params: PyTree, mesh: Mesh
) -> tuple[Create, Update]:
    """Build the jitted functions that create the train state and update it.

    Returns:
        (create, update): create(params) donates the params and returns the TrainState; update is an
        Update for the objective, called with (state, batch, rng, teacher_params).
    """
    watched_metric = None if settings.plateau is None else HELD_OUT_LOSS

    def loss_fn(params, batch, rng, teacher_params):
        return objective.loss(params, batch, rng, teacher_params=teacher_params)

    def report(state):
        # The factor on the learning rate from the next update on
        return {} if watched_metric is None else {"plateau_scale": state.opt_state[-1].scale}

    beside = UpdateOptions(watched=watched_metric, report=report)
    return create_update(settings, loss_fn, params, mesh, beside=beside)


def check_first(objective: Objective, params, batch, teacher_params):
    """Raise BrokenTerm for a term that has no effect on the first update, naming its weight.

    A term has no effect if its value, or its gradient in the student's own parameters, is 0 or not
    finite. Each term is measured by the objective's own loss with all other weights removed. This
    takes the memory of an update: one micro-batch runs after another; their values are added, and
    the largest of their gradient norms counts.

    Returns:
        The values by name.
    """
    student_params = without_projections(params)
    projections = None if student_params is params else params[PROJECTIONS]
    trained, frozen = split(student_params)

    @functools.partial(jax.jit, static_argnums=0)
    def measure(name, trained, frozen, batch, projections, teacher_params):
        single_term = dataclasses.replace(objective, weights={name: 1.0})

        def measure_part(micro_batch):
            def loss(trained):
                params = join(trained, frozen)
                if projections is not None:
                    params = {STUDENT: params, PROJECTIONS: projections}
                return single_term.loss(params, micro_batch, teacher_params=teacher_params)

            (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
            return value, optax.tree.norm(gradient)

        values, norms = over_micro_batches(measure_part, batch, objective.micro_batches)
        return values.sum(), norms.max()

    weights = {name: weight for name, weight in objective.weights.items() if weight}
    values, norms = {}, {}
    for name in weights:
        value, norm = measure(name, trained, frozen, batch, projections, teacher_params)
        values[name], norms[name] = float(value), float(norm)
    term_texts = (
        f"{name} {value:.4g} (gradient {norms[name]:.3g})" for name, value in values.items()
    )
    say(f"terms at the first update: {', '.join(term_texts)}")
    fields = (
        {f"weights.{name}": number for name, number in d.items()} for d in (weights, values, norms)
    )
    check_terms(*fields)
    return values


def _projections(objective: Objective, mesh: Mesh, seed: int):
    assert objective.teacher is not None, "the term hidden has one"
    widths = objective.student.hidden_size, objective.teacher.hidden_size
    matrices = init_projections(jax.random.key(seed), objective.student.num_hidden_layers, *widths)
    return jax.device_put(matrices, NamedSharding(mesh, PartitionSpec()))
