"""Training state on disk, by Orbax: complete checkpoints only, for any mesh."""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from deepseek_jax.files import absolute


class Store:
    """The checkpoints of one run in one folder; the newest `keep` of them stay.

    A checkpoint holds {"state": a tree of arrays, "data": anything that JSON can hold}. It counts once
    it is complete: one that a killed process left half-written is never read, and saving that step
    again replaces it.
    Use it as a context manager, or call close(): saving continues in the background.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        self.folder = absolute(folder)
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        context = ocp.Context()
        context.checkpointables.registry = registry
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            context=context,
            # Save whenever `save` is called
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )

    def save(self, step: int, checkpoint):
        """Start to save {"state": ..., "data": ...} as `step`, after any save still under way.

        The arrays may be donated once this returns. step: above those saved so far. Raises ValueError
        where it is not, and any error of the save before.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"{self.folder} already holds step {latest}; cannot save step {step}")
        self._checkpointer.save_checkpointables_async(step, checkpoint)

    def latest_step(self):
        """The newest complete checkpoint's step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def restore(self, step: int | None, abstract_state):
        """Read a checkpoint: -> {"state": ..., "data": ...}. step: None is the newest.

        abstract_state: the tree of arrays, or ShapeDtypeStructs with shardings, that "state" must
        be; the shardings decide where the arrays go, whatever mesh they were saved from.
        Raises ValueError for a step that is not there, and for a state of another tree, shape or
        dtype: it names the first path that differs.
        """
        # A save still under way is not in the list
        self.wait()
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        # None, the newest, is missing only where there is no checkpoint at all
        if step not in (steps if step is not None else [None] * len(steps)):
            raise ValueError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        abstract_state = jax.tree.map(_abstract, abstract_state)
        saved = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        self._check_same(_describe(saved), _describe(abstract_state))
        return self._checkpointer.load_checkpointables(
            step, {"state": abstract_state, "data": None}
        )

    def wait(self):
        """Return once every save is on disk; raises any error of a save."""
        self._checkpointer.wait()

    def close(self):
        """Finish saving and release the folder."""
        self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _check_same(self, saved, wanted):
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise ValueError(
                    f"the checkpoint in {self.folder} does not fit this run: {path} is "
                    f"{saved.get(path, 'missing')} there and {wanted.get(path, 'missing')} here; "
                    "set another work directory, or the config that wrote this one"
                )


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _describe(tree):
    """{"params/final_norm/scale": "float32[64]", ...}: tuples and dataclasses read like dicts."""
    return {
        "/".join(str(_key(part)) for part in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _key(part):
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return getattr(part, attribute)
    raise TypeError(f"{part!r} is no step of a path that Orbax can save")
