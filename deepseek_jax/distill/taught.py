"""Train a student from many teachers on its own samples (arXiv:2606.19348).

sample -> sort by teacher -> each teacher's hidden states -> gradients, teacher by teacher -> one
update.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from deepseek_jax.distill.chunks import Outputs
from deepseek_jax.distill.many_teachers import teacher_kl
from deepseek_jax.distill.teacher_checks import check_rows
from deepseek_jax.distill.teacher_settings import TaughtSettings
from deepseek_jax.distill.teachers import HIDDEN, Teacher, TeacherSource
from deepseek_jax.losses.completions import completion_states
from deepseek_jax.models.network import head_weight
from deepseek_jax.models.network_config import Network
from deepseek_jax.reinforce.update import sampler_limits
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import train
from deepseek_jax.training.nonfinite import locate
from deepseek_jax.training.run import Run
from deepseek_jax.training.state import Create, TrainState, state_maker
from deepseek_jax.training.update import gradients_of, jit_placed, update_of
from deepseek_jax.training.watch import Checks
from deepseek_jax.trees import PyTree


def learn_from_teachers(
    settings: TaughtSettings,
    policy: Policy,
    teachers: dict[str, Teacher],
    questions: dict[str, list],
    run: Run,
) -> Any:
    """Train policy.params from many teachers, and return the trained params.

    It resumes from run.folder, and donates policy.params.

    Args:
        teachers: Name -> Teacher, for each name of settings.teachers.
        questions: Task -> examples with prompt_ids.
    """
    check_rows(settings, run.mesh)
    create, update = jitted_update(settings, policy.config, policy.params, run.mesh, teachers)
    folder = run.folder.with_name(f"{run.folder.name}_rollouts")
    source = TeacherSource(settings, policy, teachers, questions, run.mesh, folder)
    limits = sampler_limits(policy.config)
    checks = Checks(
        limits={"sampler_gap_mean": limits["sampler_gap_mean"]},
        terms=terms_of(settings),
        locate=update.locate,
    )
    state = create(policy.params)
    return train(settings, state, update, source, run, settings.seed, checks).model


def terms_of(settings: TaughtSettings):
    """Build watch.Checks.terms of each teacher's KL and of the gradient."""
    terms = {
        f"kl_{name}": f"teachers.{name} teaches nothing: it is the student itself, or has no tokens; "
        "look at where it comes from"
        for name in settings.teachers
    }
    return terms | {"grad_norm": "no trained parameter changes the KL to a teacher"}


def make_taught_loss(config: Network):
    """Build the loss function of one teacher: weight times the KL to it.

    Returns:
        loss_fn(params, batch, rng, head) -> (loss, metrics). batch is of completions, see
        losses.completions, and also has sampler_logprobs float32[b t]; num_tokens, the number of
        tokens of the mean, temperature and weight, float32[]; and HIDDEN. head is the teacher's, [v
        d].
    """

    def loss_fn(params, batch, rng, head):
        states = completion_states(config, params, batch)
        share_bt = batch["completion_mask"] / jnp.maximum(batch["num_tokens"], 1)
        loss, metrics = teacher_kl(
            Outputs(states.hidden, head_weight(config, params)),
            Outputs(batch[HIDDEN], head),
            states.spread(share_bt),
            (states.targets, states.spread(batch["sampler_logprobs"])),
            weight=batch["weight"],
            temperature=batch["temperature"],
        )
        if states.routing:
            metrics["routing"] = states.routing
        return loss, metrics

    return loss_fn


def jitted_update(
    settings: TaughtSettings,
    config: Network,
    params: PyTree,
    mesh: Mesh,
    teachers: dict[str, Teacher],
) -> tuple[Create, "TeachersUpdate"]:
    """Build the functions that create the train state and update it.

    Args:
        params: Arrays, or ShapeDtypeStructs with shardings.

    Returns:
        (create, update): create(params) -> TrainState, which donates the params; update is a
        TeachersUpdate.
    """
    tx = settings.make_optimizer()
    create, state_shardings = state_maker(params, tx, mesh, settings.optimizer.moment_memory)
    return create, TeachersUpdate(config, settings.micro_batches, state_shardings, tx, teachers)


class TeachersUpdate:
    """One update from many teachers, jitted in parts, and its metrics.

    A call is update(state, {teacher's name: batch}, rng) -> (state, metrics). Gradients add up
    teacher by teacher, with one head on the devices at a time. Then the optimizer moves the
    parameters once. The state is donated.

    In addition to the metrics of training.update there are kl_NAME and entropy_NAME, in nats a
    token, on the samples for this teacher, and sampler_gap_mean, the largest of the teachers'
    sampler_gap.
    """

    def __init__(
        self,
        config: Network,
        micro_batches: int,
        placed: TrainState,
        tx: optax.GradientTransformation,
        teachers: dict[str, Teacher],
    ):
        self.teachers, self.placed = teachers, placed
        self.loss_fn, self.micro_batches = make_taught_loss(config), micro_batches
        self.zeros = jax.jit(_zeros, out_shardings=placed.params)
        self.add = jit_placed(self._add, placed.params)
        self.apply = jit_placed(update_of(tx), placed)

    def __call__(self, state, batch, rng):
        """Update the state once, and return it with its metrics."""
        gradients, metrics_by_teacher = self.zeros(state.params), {}
        for name, teacher_batch in batch.items():
            head = self.teachers[name].head()
            gradients, metrics_by_teacher[name] = self.add(
                gradients, state, teacher_batch, rng, head
            )
            # The next head must not arrive before this one has gone
            jax.block_until_ready(gradients)
            del head
        overflows = [
            m.pop("expert_overflows")
            for m in metrics_by_teacher.values()
            if "expert_overflows" in m
        ]
        state, metrics = self.apply(state, gradients, merged(metrics_by_teacher))
        return state, metrics | ({"expert_overflows": sum(overflows)} if overflows else {})

    def locate(self, state, batch, rng):
        """Say for each teacher where the update is not finite, see training.nonfinite.locate."""
        locate_in = functools.partial(locate, self.loss_fn, self.micro_batches)
        return "; ".join(
            f"teacher {name}: {locate_in(state, teacher_batch, rng, self.teachers[name].head())}"
            for name, teacher_batch in batch.items()
        )

    def _add(self, gradients, state, teacher_batch, rng, head):
        """Add a teacher's gradient, and return (gradients, this teacher's metrics)."""
        loss_fn = functools.partial(self.loss_fn, head=head)
        (loss, metrics), teacher_gradients = gradients_of(loss_fn, self.micro_batches)(
            state, teacher_batch, rng
        )
        routing = metrics.pop("routing", {})
        overflows = [r.overflows.sum() for r in routing.values() if r.overflows is not None]
        if overflows:
            metrics["expert_overflows"] = sum(overflows)
        if routing:
            # Their overflows are already counted
            metrics["routing"] = {k: r._replace(overflows=None) for k, r in routing.items()}
        return jax.tree.map(jnp.add, gradients, teacher_gradients), metrics | {"loss": loss}


def merged(metrics_by_teacher: dict[str, dict]) -> dict:
    """Merge {teacher's name: metrics of its part} into the metrics of an update."""
    metrics = {
        f"{key}_{name}": m[key]
        for name, m in metrics_by_teacher.items()
        for key in ("kl", "entropy")
    }
    metrics["loss"] = sum(m["loss"] for m in metrics_by_teacher.values())
    gaps = [m["sampler_gap"] for m in metrics_by_teacher.values()]
    metrics["sampler_gap_mean"] = functools.reduce(jnp.maximum, gaps)
    routings = [m["routing"] for m in metrics_by_teacher.values() if "routing" in m]
    if routings:
        metrics["routing"] = jax.tree.map(lambda *leaves: sum(leaves), *routings)
    return metrics


def _zeros(params):
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
