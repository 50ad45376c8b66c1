"""The state that an update changes: arrays only, so that it can be sharded, saved and compared."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.models.adapters import join, split
from deepseek_jax.trees import PyTree


class TrainState(struct.PyTreeNode):
    """Everything that an update reads and changes.

    Attributes:
        step: int32[], the number of updates so far.
        params: the trained parameters, float32 masters.
        opt_state: optax's state.
        reference: params of an earlier policy, for runs that replace their reference. It is saved
            with the rest.
        frozen: the rest of the model's params, which models.adapters.split separates from the
            trained ones; None where all are trained. Checkpoints leave it out.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    reference: dict | None = None
    frozen: dict | None = None

    @classmethod
    def create(cls, params: PyTree, tx: optax.GradientTransformation) -> "TrainState":
        """Build the state before the first update.

        Args:
            params: a model's params.
            tx: the optax transformation.
        """
        trained, frozen = split(params)
        step = jnp.zeros((), jnp.int32)
        return cls(step=step, params=trained, opt_state=tx.init(trained), frozen=frozen)

    @property
    def model(self) -> PyTree:
        """The model's params: the trained and the frozen ones together."""
        return join(self.params, self.frozen)

    def saved(self) -> "TrainState":
        """Return the part of the state that a checkpoint holds."""
        return self.replace(frozen=None)


class Create(Protocol):
    """The jitted function of state_maker."""

    def __call__(self, params: PyTree, /) -> TrainState:
        """Make the first TrainState of params, which are donated."""

    def eval_shape(self, params: PyTree, /) -> TrainState:
        """Return the TrainState that a call would make, of ShapeDtypeStructs."""


def state_shardings(mesh: Mesh, param_shardings, params, tx, moments: str = "device"):
    """Place a whole TrainState: moments like their parameters, counters on every device.

    Args:
        param_shardings: the tree of parallel.shardings for a model's params.
        params: arrays or ShapeDtypeStructs of the same tree.
        moments: the memory of the moments between updates, "device" or "host".

    Returns:
        A TrainState of NamedSharding, for jit's out_shardings and for a Store's restore.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    (params, rest), (param_shardings, _) = split(params), split(param_shardings)
    # A Format, not only a sharding: it has the order of axes in memory that models.adapters chose
    frozen = jax.tree.map(lambda leaf: leaf.format, rest)
    opt_state = optax.tree.map_params(
        tx,
        lambda moment, place: moment if _is_masked(moment) else in_memory(place, moments),
        jax.eval_shape(tx.init, params),
        param_shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=_is_masked,
    )
    return TrainState(step=everywhere, params=param_shardings, opt_state=opt_state, frozen=frozen)


def in_memory(place: NamedSharding, memory: str) -> NamedSharding:
    """Return the same sharding in the memory of the "device" or of its "host"."""
    return place if memory == "device" else place.with_memory_kind("pinned_host")


def _is_masked(moment):
    # A frozen parameter has this in place of moments
    return isinstance(moment, optax.MaskedNode)


def state_maker(
    params: PyTree, tx: optax.GradientTransformation, mesh: Mesh, moments: str = "device"
) -> tuple[Create, TrainState]:
    """Build (create, placed): a jitted function that makes a TrainState, and the state's shardings.

    create(params) donates params and returns the TrainState. placed is a TrainState of shardings.

    Args:
        params: arrays, or ShapeDtypeStructs with shardings.
        tx: an optax transformation.
        moments: as in state_shardings.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    placed = state_shardings(mesh, places, params, tx, moments)
    create = functools.partial(TrainState.create, tx=tx)
    # Donated: no second copy of the weights
    return jax.jit(create, out_shardings=placed, donate_argnums=0), placed
