"""The state that an update changes: arrays only, so that it can be sharded, saved and compared."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@struct.dataclass
class TrainState:
    """step: int32[], updates so far. params: the tree of float32 master weights. opt_state: optax's.

    reference: params of an earlier policy, for runs that replace their reference: it is saved with the rest.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    reference: dict | None = None

    @classmethod
    def create(cls, params, tx):
        """The state before the first update, for the optax transformation tx."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def state_shardings(mesh: Mesh, param_shardings, params, tx):
    """Place a whole TrainState: moments like their parameters, counters on every device.

    param_shardings: the tree of parallel.shardings. params: arrays or ShapeDtypeStructs of the same
    tree. Returns a TrainState of NamedSharding, for jit's out_shardings and for a Store's restore.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree.map_params(
        tx,
        lambda moment, place: moment if _is_masked(moment) else place,
        jax.eval_shape(tx.init, params),
        param_shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=_is_masked,
    )
    return TrainState(step=everywhere, params=param_shardings, opt_state=opt_state)


def _is_masked(moment):
    # A frozen parameter has this in place of moments
    return isinstance(moment, optax.MaskedNode)


def state_maker(params, tx, mesh: Mesh):
    """(create, placed): create(params), jitted, donates params and returns the TrainState.

    placed: the TrainState of its shardings. params: arrays, or ShapeDtypeStructs with shardings. tx: an optax
    transformation.
    """
    placed = state_shardings(mesh, jax.tree.map(lambda leaf: leaf.sharding, params), params, tx)
    create = functools.partial(TrainState.create, tx=tx)
    # Donated: no second copy of the weights
    return jax.jit(create, out_shardings=placed, donate_argnums=0), placed
