"""Hashes of each stage's inputs, by which a run decides which stages to run again.

A stage's stage.json has a hash of each of its inputs. The stage's own hash is computed from these
hashes, and is an input of the stages that build on it. So a change reaches every stage that depends
on it, and no other stage.

In a dataclass, only fields that differ from their defaults are hashed, so that a new field with a
default changes no hash. A changed default changes no hash either: stages that ran with the old
default are not run again. Fields with settings.UNHASHED in their metadata are not hashed: they
change no result, or they are an input of their own.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

from etils.epath import Path

from deepseek_jax.files import read_object, remove_folder, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.settings import UNHASHED

RECORD = "stage.json"
# The log in the run's folder: a line for each stage that is begun or complete, with its hash
LOG = "stages.log"
# The folder of a training's checkpoints, within the folder of its stage
CHECKPOINTS = "checkpoints"
# A key that a record has while the results of fewer steps are being removed
REMOVING = "removing"
# The format of stage.json; a file without the field `format` has format 1
FORMAT = 3


def content_hash(content: object) -> str:
    """Return a hash of 16 hexadecimal digits that is the same on every machine.

    Args:
        content: anything that JSON can hold, and dataclasses.

    Raises:
        TypeError: for an object of another kind.
    """
    # Sorted, so that the order in which a config lists its fields does not change the hash
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=_as_json)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def read_record(path: Path) -> dict:
    """Read a stage's record.

    Args:
        path: the stage's stage.json.

    Raises:
        ValueError: if another version of this project wrote the file in another format.
    """
    record = read_object(path)
    file_format = record.get("format", 1)
    if file_format != FORMAT:
        raise ValueError(
            f"{path} has format {file_format}, and this version writes format {FORMAT} and reads no other: "
            "the directory is left as it is; give another --workdir, or use the version that wrote this one"
        )
    return record


def own_seed(seed: int, name: str) -> int:
    """Return a stage's seed, which depends only on the run's seed and the stage's name.

    So a stage that is added to a recipe or removed from it changes the seed of no other stage.
    """
    return int(content_hash([seed, name]), 16) % 2**31


class Inputs(NamedTuple):
    """Everything that a stage's result depends on.

    Attributes:
        hashed: name -> a value for content_hash: settings, data, the hashes of earlier stages.
        num_steps: the steps of the stage's training; None for a stage that does not train.
        continues: whether more steps of training leave the earlier steps unchanged.
        about: further fields of stage.json, which are not hashed.
    """

    hashed: dict[str, Any]
    num_steps: int | None = None
    continues: bool = False
    about: dict[str, Any] = {}

    def record(self, name: str) -> dict:
        """Return the content of the stage's stage.json, without `complete`."""
        steps = {} if self.num_steps is None else {"num_steps": self.num_steps}
        hashes = {key: content_hash(value) for key, value in (self.hashed | steps).items()}
        stage_hash = content_hash({"stage": name} | hashes)
        return (
            {"stage": name, "inputs": hashes, "hash": stage_hash, "format": FORMAT}
            | steps
            | self.about
        )


class StageState(NamedTuple):
    """The state of a stage in its folder, compared with its present inputs.

    Attributes:
        record: the content that stage.json is to have.
        before: the content that stage.json has now; None if there is no file.
        changed: the names of the inputs that differ between the two.
        grows: whether the only change is that the training gets more steps and can go on.
    """

    record: dict
    before: dict | None
    changed: list[str]
    grows: bool

    @property
    def complete(self) -> bool:
        """Whether the stage is complete with these inputs."""
        return self.before is not None and not self.changed and self.before["complete"]

    @property
    def drops(self) -> bool:
        """Whether running the stage removes the results of its earlier run."""
        return bool(self.changed) and not self.grows


def standing(workdir: Path, name: str, inputs: Inputs) -> StageState:
    """Compare the stage in workdir/name with its present inputs.

    Raises:
        ValueError: as read_record does.
    """
    path, record = workdir / name / RECORD, inputs.record(name)
    old_record = read_record(path) if path.exists() else None
    if old_record is None:
        return StageState(record, None, [], False)
    old_inputs, new_inputs = old_record["inputs"], record["inputs"]
    changed_inputs = sorted(
        key
        for key in old_inputs.keys() | new_inputs.keys()
        if old_inputs.get(key) != new_inputs.get(key)
    )
    has_more_steps = (
        inputs.num_steps is not None and old_record.get("num_steps", 0) < inputs.num_steps
    )
    grows = changed_inputs == ["num_steps"] and has_more_steps and inputs.continues
    return StageState(record, old_record, changed_inputs, grows)


def renew(workdir: Path, name: str, state: StageState):
    """Remove the results of a stage's earlier run that had other inputs.

    If the training only gets more steps, its checkpoints stay. A removal that was interrupted is
    finished.

    Args:
        state: the stage's StageState.
    """
    folder, old_record = workdir / name, state.before
    barrier(f"the record of stage {name} is read")
    if state.drops:
        say(f"{name}: {', '.join(state.changed)} changed, so it is run anew")
        _remove(folder, name)
    elif old_record is not None and (state.grows or old_record.get(REMOVING)):
        if state.grows:
            steps = old_record["num_steps"], state.record["num_steps"]
            say(f"{name}: {steps[0]} steps become {steps[1]}, so its training goes on")
        # Written before anything is removed, so that the next start begins an interrupted removal
        # again, whatever its config
        _write(folder / RECORD, old_record | {"complete": False, REMOVING: True})
        _remove(folder, name, kept_folders=(CHECKPOINTS,))
        _write(folder / RECORD, state.record | {"complete": False})


def run_stage(workdir: Path, name: str, inputs: Inputs, make: Callable[[Path], object]) -> str:
    """Call make(folder) once for these inputs in workdir/name, and return the stage's hash.

    A stage that is complete with the same inputs is not run again. If it was interrupted with these
    inputs, make gets the folder as the interruption left it. If it was begun with other inputs,
    make gets the folder after `renew`.

    Raises:
        ValueError: as read_record does.
    """
    folder, stage_standing = workdir / name, standing(workdir, name, inputs)
    stage_hash = stage_standing.record["hash"]
    if stage_standing.complete:
        return stage_hash
    renew(workdir, name, stage_standing)
    _note(workdir, f"{name} {stage_hash} begun")
    # Before make: if make is interrupted, the record names the inputs of the files it leaves
    _write(folder / RECORD, stage_standing.record | {"complete": False})
    make(folder)
    _write(folder / RECORD, stage_standing.record | {"complete": True})
    _note(workdir, f"{name} {stage_hash} complete")
    return stage_hash


def _as_json(value):
    """Convert a dataclass to the dict that is hashed."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} of {type(value).__name__} has no hash")
    pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {
        field.name: field_value
        for field, field_value in pairs
        if not field.metadata.get(UNHASHED) and _hashed(field_value) != _hashed(_default(field))
    }


def _hashed(value):
    """Return a field's value as it enters the hash.

    Two blocks that differ only in unhashed fields are equal here.
    """
    return _as_json(value) if dataclasses.is_dataclass(value) else value


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # MISSING where the field has no default: no value equals it
    return field.default


def _remove(folder, name, kept_folders=()):
    """Remove a stage's folder, or everything in it except the folders `kept_folders`.

    Where the whole folder goes, its record is first replaced by one of no inputs, and is removed
    last. So an interrupted removal never leaves the record of a complete stage next to half of its
    files, and the next start begins it again.
    """
    barrier(f"{name} is removed")
    if first_process():
        record = folder / RECORD
        if not kept_folders:
            write_whole(record, json.dumps(Inputs({}).record(name) | {"complete": False}))
        for path in folder.iterdir():
            if path.name in kept_folders:
                continue
            if path.is_dir():
                remove_folder(path)
            elif path != record:
                path.unlink()
        if not kept_folders:
            remove_folder(folder)
    barrier(f"{name} is gone")


def _note(workdir, text):
    """Append a line with the time to the log; process 0 does so."""
    if first_process():
        path = workdir / LOG
        # Rewritten whole: a bucket's files cannot grow
        before = path.read_text() if path.exists() else ""
        write_whole(path, f"{before}{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _write(path, record):
    barrier(f"{path} is written")
    if first_process():
        write_whole(path, json.dumps(record, indent=1) + "\n")
    barrier(f"{path} is there")
