"""AdamW, with what it leaves alone and what its moments are stored in."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.models import decays
from deepseek_jax.settings import Between, Natural, NonNegative, Positive, Share
from deepseek_jax.training.schedule import Phase, join_phases, make_schedule

Decay = Annotated[float, Between(0, 1, open_high=True)]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule; see training.optimizer and training.schedule.

    The schedule is either learning_rate with schedule, warmup_steps and final_fraction, or phases end to end.
    """

    learning_rate: NonNegative | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Natural = 0
    final_fraction: Share = 0.1
    phases: tuple[Phase, ...] = ()
    b1: Decay = 0.9
    b2: Decay = 0.95
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.learning_rate is None and not self.phases:
            raise ValueError("learning_rate=None and phases=() are no schedule; set one of them")
        for field in dataclasses.fields(self)[:4] if self.phases else ():
            given = getattr(self, field.name)
            if given != field.default:
                raise ValueError(
                    f"{field.name}={given!r} and phases are two schedules; keep one of them"
                )
        for name in ("b1", "b2") if self.moment_dtype == "bfloat16" else ():
            if getattr(self, name) > 1 - 2**-8:  # half the gap between neighbours, at its widest
                raise ValueError(
                    f"{name}={getattr(self, name)} decays a moment by less than bfloat16 can tell, so that "
                    f"rounding would keep it as it is; set it to at most {1 - 2**-8}, or moment_dtype to "
                    "'float32'"
                )

    def make(self, num_updates, trains_mtp=False):
        """The optax transformation for a run of this many updates; trains_mtp where a loss trains the
        multi-token prediction. Raises ValueError as `rate` does.
        """
        return make_optimizer(
            self.rate(num_updates),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            trains_mtp=trains_mtp,
            moment_dtype=self.moment_dtype,
        )

    def rate(self, num_updates):
        """The learning rate by update. Raises ValueError for a schedule of another number of updates."""
        if self.phases:
            return join_phases(self.phases, num_steps=num_updates)
        return make_schedule(
            self.learning_rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            num_steps=num_updates,
            final_fraction=self.final_fraction,
        )


def make_optimizer(
    schedule,
    *,
    b1,
    b2,
    weight_decay,
    max_grad_norm,
    trains_mtp=False,
    moment_dtype="float32",
    eps=1e-8,
):
    """Clip by global norm, then AdamW (arXiv:1711.05101): an optax transformation.

    schedule: the learning rate by update. Weight decay, multiplied by it, skips norm scales and
    biases. Leaves named router_bias keep no moments and are never changed here: expert loads move
    them, in the step. So do, unless trains_mtp, all leaves below a name that begins with mtp_: where
    no loss trains multi-token prediction, decay alone would wear a checkpoint's weights away.
    moment_dtype: "bfloat16" stores both moments so (arXiv:2412.19437, section 3.3.3), see scale_by_adam.
    """
    trained = optax.chain(
        clip_by_global_norm(max_grad_norm),
        scale_by_adam(b1, b2, eps, moment_dtype),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule),
    )

    def labels(params):
        return jax.tree.map_with_path(
            lambda path, _: "frozen" if _is_frozen(path, trains_mtp) else "trained", params
        )

    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def clip_by_global_norm(max_norm):
    """Scale all gradients down to this norm together (arXiv:1211.5063): an optax transformation.

    optax's own divides each gradient, which XLA does not fuse into what follows: one more copy of all
    of them. Here one factor multiplies them, 1 exactly up to max_norm.
    """

    def update(grads, state, params=None):
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(b1, b2, eps, moment_dtype):
    """Adam's direction (arXiv:1412.6980), as optax's, with both moments stored in moment_dtype; its mu_dtype
    is of the mean alone.

    The arithmetic is float32. Each moment is rounded to nearest once an update, and the direction is of
    the moments as stored: then nothing reads the old ones, and the new take their place in memory.
    """

    def init(params):
        mean, square = (optax.tree.zeros_like(params, dtype=moment_dtype) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mean, square)

    def moment(decay, old, sample):
        return ((1 - decay) * sample + decay * old.astype(jnp.float32)).astype(moment_dtype)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda old, g: moment(b1, old, g), state.mu, grads)
        square = jax.tree.map(lambda old, g: moment(b2, old, g * g), state.nu, grads)

        def direction(m, v):
            m = m.astype(jnp.float32) / (1 - b1**count)
            return m / (jnp.sqrt(v.astype(jnp.float32) / (1 - b2**count)) + eps)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _is_frozen(path, trains_mtp):
    return _name(path) == "router_bias" or (path[0].key.startswith("mtp_") and not trains_mtp)


def _name(path):
    return path[-1].key
