"""Checkpoints of a run's training state, written by Orbax and read on any mesh."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

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
from deepseek_jax.trees import PyTree

policies = ocp.training.preservation_policies
# Follows the step in the new name of a damaged checkpoint
ASIDE = ".damaged"
_fingerprint = jax.jit(fingerprint)


class Store:
    """The checkpoints of one run in one folder.

    A checkpoint has {"state": a tree of arrays, "data": a dict of what JSON can hold}. It counts
    once it is complete: a checkpoint that a killed process wrote in part is never read, and saving
    its step again replaces it. Digests of all its parts, which depend on no mesh, are saved in it
    and compared when it is read.

    Use the store as a context manager, or call close(): saving continues in the background.

    Args:
        folder: The folder of the checkpoints.
        keep: Number of newest checkpoints that stay.
        keep_every: Checkpoints at multiples of this step stay too.
        best_is: "lowest" or "highest": the checkpoint with the best score stays too.
        strict: Raise DamagedCheckpoint where `newest` would use an earlier checkpoint.
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
        keep_policies = [policies.LatestN(keep)]
        if keep_every is not None:
            keep_policies.append(policies.EveryNSteps(keep_every))
        if best_is is not None:
            # Orbax sorts by score and keeps the last one: the largest, and among equals the newest
            keep_policies.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["score"],
                    n=1,
                    reverse=best_is == "lowest",
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.strict, self._stays = strict, policies.AnyPreservationPolicy(keep_policies)
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

    def save(self, step: int, checkpoint: dict[str, Any], score: float | None = None):
        """Start to save a checkpoint in the background, after any save that is still under way.

        Once this returns, the arrays may be donated and the data may change. An error of the
        previous save is raised here.

        Args:
            step: A number above all steps that are saved.
            checkpoint: {"state": ..., "data": ...}.
            score: The number that best_is compares.

        Raises:
            ValueError: The step is not above all saved ones.
        """
        last_step = self.latest_step()
        if last_step is not None and step <= last_step:
            raise ValueError(
                f"{self.folder} already holds step {last_step}; cannot save step {step}"
            )
        metrics = None if score is None else {"score": score}
        # A copy, because it is written in the background while the run changes its data
        data = json.loads(json.dumps(checkpoint["data"]))
        digests = _digests(checkpoint["state"]) | {"data": _digest_of_json(data)}
        checkpoint = checkpoint | {"data": data | {"digests": digests}}
        self._checkpointer.save_checkpointables_async(step, checkpoint, metrics=metrics)

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None if there is none."""
        checkpoint = self._checkpointer.latest
        return None if checkpoint is None else checkpoint.step

    def latest_score(self) -> float | None:
        """Return the score of the newest checkpoint, or None if it has none."""
        scores, step = self.scores(), self.latest_step()
        return None if step is None else scores.get(step)

    def scores(self) -> dict[int, float]:
        """Return {step: score} of the checkpoints that have a score, the oldest first."""
        self.wait()
        checkpoints = self._checkpointer.checkpoints
        return {c.step: c.metrics["score"] for c in checkpoints if c.metrics is not None}

    def newest(self, abstract_state: PyTree) -> tuple[int, dict[str, Any]] | tuple[None, None]:
        """Read the newest checkpoint that is not damaged.

        A damaged checkpoint is reported and renamed to STEP.damaged.

        Args:
            abstract_state: As in restore.

        Returns:
            (step, checkpoint), with the checkpoint as restore returns it; (None, None) if there is
            none.

        Raises:
            DamagedCheckpoint: All checkpoints are damaged; or, if the store is strict, the newest
                one is.
        """
        newest_step = step = self.latest_step()
        while step is not None:
            try:
                return step, self.restore(step, abstract_state)
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
                self._checkpointer.reload()
            step = self.latest_step()
        if newest_step is not None:
            raise DamagedCheckpoint(
                f"{self.folder} has no checkpoint that is whole; remove it to begin anew"
            )
        return None, None

    def restore(self, step: int | None, abstract_state: PyTree) -> dict[str, Any]:
        """Read a checkpoint and compare it with its digests.

        Args:
            step: The checkpoint's step; None is the newest.
            abstract_state: The tree of arrays, or ShapeDtypeStructs with shardings, that "state"
                must be. The shardings decide where the arrays go, whatever mesh they were saved
                from.

        Returns:
            {"state": ..., "data": ...}.

        Raises:
            ValueError: There is no such step; there are no digests (damage.digests_in); or the
                state has another tree, shape or dtype. In the last case the message has the first
                path that differs.
            DamagedCheckpoint: One process cannot read a file, or an array is not what was saved. In
                the second case the message has the array's name. All processes raise it.
        """
        # The list lacks a save that is still under way
        self.wait()
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        # None, the newest, is missing only if there is no checkpoint at all
        if step not in (steps if step is not None else [None] * len(steps)):
            raise ValueError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        step = steps[-1] if step is None else step
        abstract_state = jax.tree.map(_abstract, abstract_state)
        abstract_checkpoint = {"state": abstract_state, "data": None}
        self._check_same(step, abstract_state)
        checkpoint = self._read(
            step, lambda: self._checkpointer.load_checkpointables(step, abstract_checkpoint)
        )
        self._check_digests(step, checkpoint)
        return checkpoint

    def finish_deleting(self):
        """Delete the checkpoints that need not stay.

        Every save does this. Call it for a run that was killed during its last save.
        """
        self.wait()
        checkpoints = self._checkpointer.checkpoints
        keep_flags = self._stays.should_preserve(
            checkpoints, context=policies.PreservationContext()
        )
        for checkpoint, is_kept in zip(checkpoints, keep_flags, strict=True):
            if not is_kept:
                self._checkpointer.delete(checkpoint.step)

    def wait(self):
        """Wait until every save is on disk, and raise any error of a save."""
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
        saved_digests = digests_in(path, data)
        del data["digests"]
        actual_digests = _digests(checkpoint["state"]) | {"data": _digest_of_json(data)}
        check_digests(path, actual_digests, saved_digests)

    def _set_aside_bad_scores(self):
        """Set aside checkpoints with a score that is not JSON.

        Orbax reads the scores of all checkpoints at once, and fails if it cannot parse one of them.
        """
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
            damaged_folder = self.folder / f"{step}{ASIDE}"
            # An earlier folder may have this name
            remove_folder(damaged_folder)
            (self.folder / str(step)).rename(damaged_folder)
        barrier(f"checkpoint {step} is set aside")

    def _check_same(self, step, abstract_state):
        """Raise ValueError if the checkpoint's state has another tree, shape or dtype."""
        metadata = self._read(
            step, lambda: self._checkpointer.checkpointables_metadata(step).metadata
        )
        # The metadata cannot be read: reading the arrays says why
        if metadata.get("state") is None:
            return
        saved_leaves, expected_leaves = _describe(metadata["state"]), _describe(abstract_state)
        for path in sorted(saved_leaves.keys() | expected_leaves.keys()):
            if saved_leaves.get(path) != expected_leaves.get(path):
                raise ValueError(
                    f"the checkpoint in {self.folder} does not fit this run: {path} is "
                    f"{saved_leaves.get(path, 'missing')} there and {expected_leaves.get(path, 'missing')} "
                    "here; set another work directory, or the config that wrote this one"
                )


def _digests(state):
    """Compute {path: ops.fingerprint of the array}.

    Each array is separate, so that a message can name it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    # One by one: moments in the host's memory would not fit on the device together. On CPUs, where
    # processes exchange sums, several programs at once may also wait for each other
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
    """Return {"params/final_norm/scale": "float32[64]", ...} for a tree of arrays.

    Tuples and dataclasses read like dicts.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _name(path):
    return "/".join(str(_key(part)) for part in path)


def _key(part):
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return getattr(part, attribute)
    raise TypeError(f"{part!r} is no step of a path that Orbax can save")
