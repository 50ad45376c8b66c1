"""The parameters of a phase's checkpoint, without what its optimizer keeps beside them."""

import json
from pathlib import Path

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint.damage import (
    REMEDY,
    check_digests,
    digests_in,
    quiet_orbax,
    read_together,
)
from deepseek_jax.checkpoint.tree import abstract_params, by_path, from_paths
from deepseek_jax.files import absolute
from deepseek_jax.models import ModelConfig
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.shard import on_device

_fingerprint = jax.jit(fingerprint)


def newest_in(folder: str | Path, best_is: str | None = None) -> Path:
    """The folder of the newest checkpoint of a store.Store, or of the best one, of equals the newest.

    best_is: of the Store, where the training ended with its best checkpoint. The folder stays as it is.
    Raises ValueError where there is no checkpoint.
    """
    folder = absolute(folder)
    paths = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    paths.sort(key=lambda path: int(path.name), reverse=True)
    if not paths:
        raise ValueError(f"{folder} has no checkpoint of the training that the run began with")
    if best_is is None:
        return paths[0]
    files = {path: path / "metrics" / "metrics" for path in paths}
    scores = {path: json.loads(f.read_text())["score"] for path, f in files.items() if f.exists()}
    best = min if best_is == "lowest" else max
    return best(scores, key=scores.get, default=paths[0])


def phase_params(path: Path, config: ModelConfig, mesh: Mesh):
    """The params in a checkpoint of a model's training, in float32 on the mesh. path: of newest_in.

    Raises DamagedCheckpoint as Store.restore does.
    """
    quiet_orbax()
    wanted = from_paths(abstract_params(config, mesh=mesh))
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True

    def read():
        with context:
            found = {"state": {"params": wanted}, "data": None}
            return jax.block_until_ready(ocp.load_checkpointables(path, found))

    read_found = read_together(path, read, by_path(wanted), REMEDY)
    params = read_found["state"]["params"]
    # Under the names of the Store, of whose state they are a part
    names = {f"params/{name}": leaf for name, leaf in by_path(params).items()}
    found = {name: int(_fingerprint(on_device(leaf))) for name, leaf in names.items()}
    check_digests(path, found, digests_in(path, read_found["data"]), REMEDY)
    return params
