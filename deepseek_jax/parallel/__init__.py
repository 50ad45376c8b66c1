"""Where arrays live: the device mesh, the table of axes, and the shardings that follow."""

from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.rules import MESH_AXES, RULES
from deepseek_jax.parallel.shard import (
    batch_sharding,
    constrain,
    init_sharded,
    logical_names,
    partition_spec,
    put_batch,
    shardings,
)

__all__ = [
    "MESH_AXES",
    "RULES",
    "batch_sharding",
    "constrain",
    "init_sharded",
    "logical_names",
    "make_mesh",
    "partition_spec",
    "put_batch",
    "shardings",
]
