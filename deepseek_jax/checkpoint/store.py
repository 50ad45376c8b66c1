"""Training state on disk, by Orbax: complete checkpoints only, for any mesh."""

import json
from hashlib import blake2b
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint.damage import (
    DamagedCheckpoint,
    check_digests,
    digests_in,
    quiet_orbax,
    read_together,
)
from deepseek_jax.files import absolute, remove_folder
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.parallel.shard import on_device

policies = ocp.training.preservation_policies
# The name of a checkpoint that was set aside: STEP and this
ASIDE = ".damaged"
_fingerprint = jax.jit(fingerprint)


class Store:
    """The checkpoints of one run in one folder.

    The newest `keep` of them stay, with keep_every also those of its multiples, and with best_is, "lowest" or
    "highest", also the one with the best score.
    A checkpoint holds {"state": a tree of arrays, "data": a dict of what JSON can hold}. It counts once
    it is complete: one that a killed process left half-written is never read, and saving that step
    again replaces it. Digests of all that it holds, which depend on no mesh, are saved in it and compared
    when it is read. strict: raise DamagedCheckpoint where `newest` would use an earlier one.
    Use it as a context manager, or call close(): saving continues in the background.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        best_is: str | None = None,
        strict: bool = False,
    ):
        quiet_orbax()
        self.folder = absolute(folder)
        stays = [policies.LatestN(keep)]
        if keep_every is not None:
            stays.append(policies.EveryNSteps(keep_every))
        if best_is is not None:
            # Orbax sorts by score, ascending, and keeps the last: the largest, and among equals the newest
            stays.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["score"],
                    n=1,
                    reverse=best_is == "lowest",
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.strict, self._stays = strict, policies.AnyPreservationPolicy(stays)
        self._set_aside_bad_scores()
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        context = ocp.Context()
        context.checkpointables.registry = registry
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            context=context,
            # Save whenever `save` is called
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._stays,
        )

    def save(self, step: int, checkpoint, score: float | None = None):
        """Start to save {"state": ..., "data": ...} as `step`, after any save still under way.

        The arrays may be donated, and the data may change, once this returns. step: above those saved so far.
        Raises ValueError where it is not, and any error of the save before.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"{self.folder} already holds step {latest}; cannot save step {step}")
        metrics = None if score is None else {"score": score}
        # A copy: it is written in the background, while the run goes on changing its own
        data = json.loads(json.dumps(checkpoint["data"]))
        digests = _digests(checkpoint["state"]) | {"data": _digest_of_json(data)}
        checkpoint = checkpoint | {"data": data | {"digests": digests}}
        self._checkpointer.save_checkpointables_async(step, checkpoint, metrics=metrics)

    def latest_step(self):
        """The newest complete checkpoint's step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def latest_score(self):
        """The score of the newest checkpoint; None without one."""
        return self.scores().get(self.latest_step())

    def scores(self):
        """{step: score} of the checkpoints that have one, the oldest first."""
        self.wait()
        found = self._checkpointer.checkpoints
        return {c.step: c.metrics["score"] for c in found if c.metrics is not None}

    def newest(self, abstract_state):
        """(step, what restore returns) of the newest checkpoint that is whole; (None, None) without any.

        A damaged one is named, and renamed to STEP.damaged. Raises DamagedCheckpoint where none is left.
        """
        newest = step = self.latest_step()
        while step is not None:
            try:
                return step, self.restore(step, abstract_state)
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
                self._checkpointer.reload()
            step = self.latest_step()
        if newest is not None:
            raise DamagedCheckpoint(
                f"{self.folder} has no checkpoint that is whole; remove it to begin anew"
            )
        return None, None

    def restore(self, step: int | None, abstract_state):
        """Read a checkpoint: -> {"state": ..., "data": ...}. step: None is the newest.

        abstract_state: the tree of arrays, or ShapeDtypeStructs with shardings, that "state" must
        be; the shardings decide where the arrays go, whatever mesh they were saved from.
        Raises ValueError for a step that is not there, as damage.digests_in does, and for a state of another
        tree, shape or dtype: it names the first path that differs. Raises DamagedCheckpoint, on all
        processes, where a file cannot be read on one of them, and where an array is not what was saved: it
        names the array.
        """
        # A save still under way is not in the list
        self.wait()
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        # None, the newest, is missing only where there is no checkpoint at all
        if step not in (steps if step is not None else [None] * len(steps)):
            raise ValueError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        step = steps[-1] if step is None else step
        abstract_state = jax.tree.map(_abstract, abstract_state)
        wanted = {"state": abstract_state, "data": None}
        self._check_same(step, abstract_state)
        checkpoint = self._read(step, lambda: self._checkpointer.load_checkpointables(step, wanted))
        self._check_digests(step, checkpoint)
        return checkpoint

    def finish_deleting(self):
        """Delete checkpoints that do not stay. Saves do it: this is for a run killed in its last one."""
        self.wait()
        found = self._checkpointer.checkpoints
        stays = self._stays.should_preserve(found, context=policies.PreservationContext())
        for checkpoint, stay in zip(found, stays, strict=True):
            if not stay:
                self._checkpointer.delete(checkpoint.step)

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

    def _read(self, step, read):
        return read_together(self.folder / str(step), read)

    def _check_digests(self, step, checkpoint):
        path, data = self.folder / str(step), checkpoint["data"]
        digests = digests_in(path, data)
        del data["digests"]
        found = _digests(checkpoint["state"]) | {"data": _digest_of_json(data)}
        check_digests(path, found, digests)

    def _set_aside_bad_scores(self):
        """Orbax reads the scores of all checkpoints at once, and fails if one of them is not JSON."""
        if not self.folder.exists():
            return
        for step in sorted(folder.name for folder in self.folder.iterdir()):
            path = self.folder / step / "metrics" / "metrics"
            if step.isdigit() and path.exists() and not _is_json(path.read_bytes()):
                damage = DamagedCheckpoint(f"{self.folder / step} is damaged: {path} is not JSON")
                self._set_aside(step, damage)

    def _set_aside(self, step, damage):
        if self.strict:
            raise damage
        say(f"{damage}. It is renamed to {step}{ASIDE}, and an earlier checkpoint is looked for.")
        barrier(f"checkpoint {step} is read")
        if first_process():
            aside = self.folder / f"{step}{ASIDE}"
            # A folder that was set aside earlier
            remove_folder(aside)
            (self.folder / str(step)).rename(aside)
        barrier(f"checkpoint {step} is set aside")

    def _check_same(self, step, abstract_state):
        """Raise ValueError where the checkpoint's state is of another tree, shape or dtype."""
        metadata = self._read(
            step, lambda: self._checkpointer.checkpointables_metadata(step).metadata
        )
        # Not readable: what reads the arrays says why
        if metadata.get("state") is None:
            return
        saved, wanted = _describe(metadata["state"]), _describe(abstract_state)
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise ValueError(
                    f"the checkpoint in {self.folder} does not fit this run: {path} is "
                    f"{saved.get(path, 'missing')} there and {wanted.get(path, 'missing')} here; "
                    "set another work directory, or the config that wrote this one"
                )


def _digests(state):
    """{path: ops.fingerprint of the array}: each array alone, so that a message can name it."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    # One by one: moments in the host's memory would not fit on the device together, and sums of several
    # programs at once may wait for each other where processes exchange them on CPUs
    return {_name(path): int(_fingerprint(on_device(leaf))) for path, leaf in leaves}


def _digest_of_json(data):
    text = json.dumps(data, sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _is_json(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _describe(tree):
    """{"params/final_norm/scale": "float32[64]", ...}: tuples and dataclasses read like dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _name(path):
    return "/".join(str(_key(part)) for part in path)


def _key(part):
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return getattr(part, attribute)
    raise TypeError(f"{part!r} is no step of a path that Orbax can save")
