"""Where arrays live: the device mesh, the table of axes, and the shardings that follow."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "MESH_AXES": "rules",
        "RULES": "rules",
        "batch_sharding": "shard",
        "constrain": "shard",
        "init_sharded": "shard",
        "logical_names": "shard",
        "make_mesh": "mesh",
        "partition_spec": "shard",
        "put_batch": "shard",
        "shardings": "shard",
    },
)
