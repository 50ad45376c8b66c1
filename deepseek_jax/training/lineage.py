"""Hashes of what each stage of a run depends on: a stage whose inputs are unchanged is not run again.

A stage's stage.json holds the hash of each of its inputs. The stage's own hash is computed from these and is
an input of the stages that build on it: a change reaches every stage that depends on it, and no other. Of a
dataclass, only fields that differ from their defaults are hashed, so that a new field with a default changes
no hash. A changed default changes no hash either: stages that ran with the old default stay as they are.
Fields with settings.UNHASHED in their metadata are left out: those that change no result, and those that are
an input of their own.
"""

import dataclasses
import json
from hashlib import blake2b
from typing import Any, NamedTuple

from etils.epath import Path

from deepseek_jax.files import read_object, remove_folder, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.settings import UNHASHED

RECORD = "stage.json"
# The folder of a training's checkpoints in that of its stage
CHECKPOINTS = "checkpoints"
# In a record while results are removed that are of fewer steps
REMOVING = "removing"
# The format of stage.json. Those of the first format have no field `format`
FORMAT = 3


def content_hash(content):
    """16 hexadecimal digits for anything that JSON can hold, and dataclasses: the same on every machine."""
    # Sorted, so that the order in which a config lists its fields does not change the hash
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=_as_json)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def read_record(path: Path):
    """A stage's record. path: of its stage.json. Raises ValueError where another version of this project
    wrote it, in another format.
    """
    record = read_object(path)
    found = record.get("format", 1)
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, and this version writes format {FORMAT} and reads no other: the "
            "directory is left as it is; give another --workdir, or use the version that wrote this one"
        )
    return record


def own_seed(seed: int, name: str):
    """A seed of a stage's own: of a run's seed and the stage's name alone, so that no stage more or less in a
    recipe changes it.
    """
    return int(content_hash([seed, name]), 16) % 2**31


class Inputs(NamedTuple):
    """What a stage's result depends on. hashed: name -> what content_hash takes: settings, data, the hashes
    of earlier stages. num_steps: of its training, None without any. continues: whether more steps of training
    leave those so far as they are. about: what stage.json says besides.
    """

    hashed: dict[str, Any]
    num_steps: int | None = None
    continues: bool = False
    about: dict[str, Any] = {}

    def record(self, name: str):
        """The content of the stage's stage.json, without `complete`."""
        steps = {} if self.num_steps is None else {"num_steps": self.num_steps}
        hashes = {key: content_hash(value) for key, value in (self.hashed | steps).items()}
        own = content_hash({"stage": name} | hashes)
        return {"stage": name, "inputs": hashes, "hash": own, "format": FORMAT} | steps | self.about


class Standing(NamedTuple):
    """How a stage stands. record: what stage.json is to hold. before: what it holds, None for nothing.
    changed: the names of the inputs that differ. grows: whether a training only gets more steps.
    """

    record: dict
    before: dict | None
    changed: list[str]
    grows: bool

    @property
    def complete(self):
        """Whether the stage is complete with these inputs."""
        return self.before is not None and not self.changed and self.before["complete"]

    @property
    def drops(self):
        """Whether to run the stage is to drop what an earlier run of it left."""
        return bool(self.changed) and not self.grows


def standing(workdir: Path, name: str, inputs: Inputs) -> Standing:
    """How the stage in workdir/name stands. Raises ValueError as read_record does."""
    path, record = workdir / name / RECORD, inputs.record(name)
    before = read_record(path) if path.exists() else None
    if before is None:
        return Standing(record, None, [], False)
    old, new = before["inputs"], record["inputs"]
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    more = inputs.num_steps is not None and before.get("num_steps", 0) < inputs.num_steps
    grows = changed == ["num_steps"] and more and inputs.continues
    return Standing(record, before, changed, grows)


def renew(workdir: Path, name: str, found: Standing):
    """Remove what an earlier run of a stage has left that is of other inputs. Of a training that only gets
    more steps the checkpoints stay.
    """
    folder, before = workdir / name, found.before
    barrier(f"the record of stage {name} is read")
    if found.drops:
        say(f"stage {name}: {', '.join(found.changed)} changed, so it is run anew")
        _remove(folder, name)
    elif found.grows or (before is not None and before.get(REMOVING)):
        if found.grows:
            steps = before["num_steps"], found.record["num_steps"]
            say(f"stage {name}: {steps[0]} steps become {steps[1]}, so its training goes on")
        # Before anything is removed: a removal that is cut short is begun again, whatever config comes next
        _write(folder / RECORD, before | {"complete": False, REMOVING: True})
        _remove(folder, name, but=(CHECKPOINTS,))
        _write(folder / RECORD, found.record | {"complete": False})


def run_stage(workdir: Path, name: str, inputs: Inputs, make) -> str:
    """Call make(folder) once for these inputs, with the folder workdir/name: -> the stage's hash.

    A stage that is complete with the same inputs is not run again. If it was interrupted with these inputs,
    make gets the folder as it was left; if it was begun with other inputs, what `renew` leaves. Raises
    ValueError as read_record does.
    """
    folder, found = workdir / name, standing(workdir, name, inputs)
    own = found.record["hash"]
    if found.complete:
        say(f"stage {name} {own}: unchanged, not run again")
        return own
    renew(workdir, name, found)
    say(f"stage {name} {own}")
    # Before make: if make is interrupted, the record names the inputs of the files it leaves
    _write(folder / RECORD, found.record | {"complete": False})
    make(folder)
    _write(folder / RECORD, found.record | {"complete": True})
    return own


def _as_json(value):
    """A dataclass as it is hashed: a dict."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} of {type(value).__name__} has no hash")
    pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {
        field.name: given
        for field, given in pairs
        if not field.metadata.get(UNHASHED) and _hashed(given) != _hashed(_default(field))
    }


def _hashed(value):
    """What a field's value has in a hash: a block with other values of unhashed fields alone is the same."""
    return _as_json(value) if dataclasses.is_dataclass(value) else value


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # MISSING where the field has no default: no value equals it
    return field.default


def _remove(folder, name, but=()):
    """Remove a stage's folder, or all in it but the folders `but`: its files, then its record, which from the
    start on is of no inputs. A removal that is cut short must leave no record of a complete stage beside half
    of its files, and is begun again.
    """
    barrier(f"{name} is removed")
    if first_process():
        record = folder / RECORD
        if not but:
            write_whole(record, json.dumps(Inputs({}).record(name) | {"complete": False}))
        for path in folder.iterdir():
            if path.name in but:
                continue
            if path.is_dir():
                remove_folder(path)
            elif path != record:
                path.unlink()
        if not but:
            remove_folder(folder)
    barrier(f"{name} is gone")


def _write(path, record):
    barrier(f"{path} is written")
    if first_process():
        write_whole(path, json.dumps(record, indent=1) + "\n")
    barrier(f"{path} is there")
