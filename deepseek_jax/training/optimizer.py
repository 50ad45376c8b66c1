"""The optimizer of every update: AdamW, or Muon for matrices and AdamW for the rest.

Here are also its settings, the rule for parameters that it never changes, and the dtype of moments.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepseek_jax.models.layers import decays, has_gradient
from deepseek_jax.settings import Between, Natural, NonNegative, Positive, Share
from deepseek_jax.training.muon import is_matrix, scale_by_muon
from deepseek_jax.training.schedule import Phase, join_phases, make_schedule

# Adam's epsilon, as in the papers and in optax
EPS = 1e-8
Decay = Annotated[float, Between(0, 1, open_high=True)]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning-rate schedule.

    The schedule is either learning_rate, with schedule, warmup_steps and final_fraction (see
    schedule.make_schedule), or phases (see schedule.join_phases).

    Attributes:
        learning_rate: the rate after the warm-up; None with phases.
        schedule: "constant", or "cosine", which falls from there to the last update.
        warmup_steps: updates in which the rate rises to learning_rate.
        final_fraction: the share of learning_rate at which "cosine" ends.
        phases: stretches of a schedule, one after another, in place of the four fields above.
        b1, b2: the decays of AdamW's first and second moment.
        weight_decay: decoupled decay of weights; norms and biases have none.
        max_grad_norm: gradients are clipped to this global norm.
        moment_dtype: the dtype of all moments.
        moment_memory: "host" keeps the moments in the host's memory between updates.
        kind: "adamw", or "muon" for matrices and AdamW for the rest, see training.muon.
        momentum: Muon's momentum.
    """

    learning_rate: Positive | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Natural = 0
    final_fraction: Share = 0.1
    phases: tuple[Phase, ...] = ()
    b1: Decay = 0.9
    b2: Decay = 0.95
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    moment_memory: Literal["device", "host"] = "device"
    kind: Literal["adamw", "muon"] = "adamw"
    momentum: Decay = 0.95

    def __post_init__(self):
        if self.learning_rate is None and not self.phases:
            raise ValueError("learning_rate=None and phases=() are no schedule; set one of them")
        if self.phases and all(phase.to == 0 for phase in self.phases):
            raise ValueError(
                "phases[0].to=0, and so all others: nothing is trained; set one above 0"
            )
        # The first four fields are the other way to set a schedule
        for field in dataclasses.fields(self)[:4] if self.phases else ():
            value = getattr(self, field.name)
            if value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} and phases are two schedules; keep one of them"
                )
        momentum = type(self).__dataclass_fields__["momentum"].default
        if self.kind == "adamw" and self.momentum != momentum:
            raise ValueError(f"momentum={self.momentum} is Muon's; set b1, or kind to 'muon'")
        for name in ("b1", "b2", "momentum") if self.moment_dtype == "bfloat16" else ():
            # A relative change below 2^-8, half of bfloat16's widest gap, may round to no change
            if getattr(self, name) > 1 - 2**-8:
                raise ValueError(
                    f"{name}={getattr(self, name)} decays a moment by less than bfloat16 can represent: "
                    f"rounding would leave it unchanged; set {name} to at most {1 - 2**-8}, or moment_dtype "
                    "to 'float32'"
                )

    def make(self, num_updates: int, trained_parts: tuple[str, ...] = ()):
        """Build the optax transformation for a run of this many updates.

        Args:
            trained_parts: the models.layers.PARTS that the loss trains.

        Raises:
            ValueError: as `rate` does.
        """
        return make_optimizer(
            self.rate(num_updates),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            trained_parts=trained_parts,
            moment_dtype=self.moment_dtype,
            momentum=self.momentum if self.kind == "muon" else None,
        )

    def warm_up(self):
        """Return the number of updates before the learning rate reaches its full value."""
        if self.phases and self.phases[0].kind != "constant":
            return self.phases[0].steps
        return self.warmup_steps

    def rate(self, num_updates: int):
        """Build the learning rate as a function of the update.

        Raises:
            ValueError: for a schedule that does not fit num_updates.
        """
        if self.phases:
            return join_phases(self.phases, num_steps=num_updates)
        assert self.learning_rate is not None, "without phases, __post_init__ asks for one"
        return make_schedule(
            self.learning_rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            num_steps=num_updates,
            final_fraction=self.final_fraction,
        )


def make_optimizer(
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    max_grad_norm: float,
    trained_parts: tuple[str, ...] = (),
    moment_dtype: str = "float32",
    momentum: float | None = None,
) -> optax.GradientTransformation:
    """Build the optax transformation of an update: clipping by global norm, then the optimizer.

    The optimizer is AdamW (arXiv:1711.05101). With a momentum it is Muon for the matrices and AdamW
    for the rest.

    Weight decay is multiplied by the learning rate, and skips norm scales and biases. Parameters
    without a gradient have no moments and are never changed here: otherwise weight decay would
    shrink a checkpoint's weights. These are router_bias, which the train step moves by expert load,
    and the models.layers.PARTS that are not among `trained_parts`.

    Args:
        schedule: the learning rate by update.
        trained_parts: the models.layers.PARTS that the loss trains.
        moment_dtype: the dtype of all moments, see scale_by_adam; bfloat16 as in arXiv:2412.19437,
            section 3.3.3.
        momentum: Muon's; None for AdamW only.
    """
    direction = scale_by_adam(b1, b2, EPS, moment_dtype)
    if momentum is not None:
        kinds = {"matrix": scale_by_muon(momentum, moment_dtype), "other": direction}
        direction = optax.partition(kinds, _matrices)
    trained = optax.chain(
        clip_by_global_norm(max_grad_norm),
        direction,
        # After Adam, so that Adam does not rescale the decay (arXiv:1711.05101, algorithm 2)
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule),
    )

    def labels(params):
        return jax.tree.map_with_path(
            lambda path, _: "trained" if has_gradient(path, trained_parts) else "frozen", params
        )

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def clip_by_global_norm(max_norm: float):
    """Build an optax transformation that scales all gradients down to this norm (arXiv:1211.5063).

    optax's own transformation divides each gradient. XLA does not fuse that division with what
    follows, and makes one more copy of all gradients. Here one factor multiplies them; up to
    max_norm it is exactly 1.
    """

    def update(grads, state, params=None):
        # A norm of 0 makes the quotient infinite and the factor 1
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(b1: float, b2: float, eps: float, moment_dtype: str):
    """Build Adam's direction (arXiv:1412.6980) with both moments stored in moment_dtype.

    optax's mu_dtype changes only the mean. The arithmetic is in float32, and each moment is rounded
    to nearest once an update. The direction is computed from the stored (rounded) moments. Then
    nothing reads the old moments any more, and the new ones take their place in memory.
    """

    def init(params):
        mean, square = (optax.tree.zeros_like(params, dtype=moment_dtype) for _ in range(2))
        # numpy's zeros, so that a plan compiles nothing
        return optax.ScaleByAdamState(np.zeros((), np.int32), mean, square)

    def moment(decay, old, sample):
        return ((1 - decay) * sample + decay * old.astype(jnp.float32)).astype(moment_dtype)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda old, g: moment(b1, old, g), state.mu, grads)
        square = jax.tree.map(lambda old, g: moment(b2, old, g * g), state.nu, grads)

        # The moments start at zero: 1 - b**count corrects for that (algorithm 1)
        def direction(m, v):
            m = m.astype(jnp.float32) / (1 - b1**count)
            return m / (jnp.sqrt(v.astype(jnp.float32) / (1 - b2**count)) + eps)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _matrices(params):
    """Label each parameter "matrix" or "other".

    Raises:
        ValueError: for params without a matrix.
    """
    labels = jax.tree.map_with_path(
        lambda path, _: "matrix" if is_matrix(path) else "other", params
    )
    # optax.tree.map_params calls it with a placeholder
    if isinstance(params, dict) and "matrix" not in jax.tree.leaves(labels):
        raise ValueError(
            "kind='muon' finds no matrix among the trained parameters, such as those of an adapter; set "
            "it to 'adamw'"
        )
    return labels
