"""Hashes of what each stage of a run depends on: a stage whose inputs are unchanged is not run again.

A stage's stage.json holds the hash of each of its inputs. The stage's own hash is computed from these and is
an input of the stages that build on it: a change reaches every stage that depends on it, and no other. Of a
dataclass, only fields that differ from their defaults are hashed, so that a new field with a default changes
no hash. A changed default changes no hash either: stages that ran with the old default stay as they are.
"""

import dataclasses
import functools
import json
from hashlib import blake2b
from typing import Any

from etils.epath import Path

from deepseek_jax.files import read_json, remove_folder, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, say

# The format of stage.json. Records of the first format have no field `format`
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Formerly:
    """An input, or a part of one, for which records without a format hash `before`."""

    value: Any
    before: Any


def content_hash(content, *, whole: bool = False):
    """16 hexadecimal digits for anything that JSON can hold, and dataclasses: the same on every machine.

    whole: hash as records without a format do: all fields of a dataclass except those of settings.added.
    """
    as_json = functools.partial(_as_json, whole=whole)
    # Sorted, so that the order in which a config lists its fields does not change the hash
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=as_json)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def all_fields(block):
    """A dataclass as a dict of the fields that records without a format hash."""
    return {field.name: getattr(block, field.name) for field in _former_fields(block)}


def as_given(workdir: Path, name: str):
    """The block config.NAME as launch wrote it to config.json: records without a format hash that.

    {} where no program started the run.
    """
    path = workdir / "config.json"
    return read_json(path).get(name, {}) if path.exists() else {}


def run_stage(workdir: Path, name: str, inputs: dict, make):
    """Call make(folder) once for these inputs, with the folder workdir/name: -> the stage's hash.

    inputs: name -> what content_hash takes: settings, data, the hashes of earlier stages. A stage that is
    complete with the same inputs is not run again. If it was interrupted with these inputs, make gets the
    folder as it was left; if it was begun with other inputs, an empty one. A record without a format stays
    without one while its inputs are the same.
    """
    folder = workdir / name
    record = _record(name, inputs)
    barrier(f"the record of stage {name} is read")
    before = _read(folder / "stage.json")
    # An old record stays valid: hash as it did
    if before is not None and "format" not in before:
        record = _record(name, inputs, whole=True)
    hashes = record["inputs"]
    if before is not None and before["inputs"] != hashes:
        changed = sorted(k for k in hashes if before["inputs"].get(k) != hashes[k])
        say(f"stage {name}: {', '.join(changed)} changed, so it is run anew")
        before, record = None, _record(name, inputs)
        _remove(folder)
    own = record["hash"]
    shown = ", ".join(f"{key} {digest}" for key, digest in record["inputs"].items())
    if before is not None and before["complete"]:
        say(f"stage {name} {own}: unchanged ({shown}), not run again")
        return own
    say(f"stage {name} {own}: {shown}")
    # Before make: if make is interrupted, the record names the inputs of the files it leaves
    _write(folder / "stage.json", record | {"complete": False})
    make(folder)
    _write(folder / "stage.json", record | {"complete": True})
    return own


def measure_once(workdir: Path, name: str, inputs: dict, measure):
    """run_stage for a measurement: -> what measure() returned for these inputs, anything that JSON can hold.

    It is stored in scores.json in the stage's folder.
    """

    def make(folder):
        found = measure()
        if first_process():
            write_whole(folder / "scores.json", json.dumps(found, indent=1))

    run_stage(workdir, name, inputs, make)
    # Always from the file: JSON turns tuples into lists, and a resumed run must get the same
    return read_json(workdir / name / "scores.json")


def _record(name, inputs, *, whole=False):
    hashes = {key: content_hash(value, whole=whole) for key, value in inputs.items()}
    number = {} if whole else {"format": FORMAT}
    own = content_hash({"stage": name} | hashes)
    return {"stage": name, "inputs": hashes, "hash": own} | number


def _as_json(value, *, whole):
    """A dataclass as it is hashed: a dict."""
    if isinstance(value, Formerly):
        return value.before if whole else value.value
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} of {type(value).__name__} has no hash")
    if whole:
        return all_fields(value)
    pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {field.name: given for field, given in pairs if given != _default(field)}


def _former_fields(block):
    fields = dataclasses.fields(block)
    return [field for field in fields if field.metadata.get("since", 1) < FORMAT]


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # MISSING where the field has no default: no value equals it
    return field.default


def _read(path):
    return read_json(path) if path.exists() else None


def _remove(folder):
    """Remove a stage's folder: its files, then its record, which from the start on is of no inputs. A removal
    that is cut short must leave no record of a complete stage beside half of its files, and is begun again.
    """
    barrier(f"{folder.name} is removed")
    if first_process():
        record = folder / "stage.json"
        write_whole(record, json.dumps(_record(folder.name, {}) | {"complete": False}))
        for path in folder.iterdir():
            if path.is_dir():
                remove_folder(path)
            elif path != record:
                path.unlink()
        remove_folder(folder)
    barrier(f"{folder.name} is gone")


def _write(path, record):
    barrier(f"{path} is written")
    if first_process():
        write_whole(path, json.dumps(record, indent=1) + "\n")
    barrier(f"{path} is there")
