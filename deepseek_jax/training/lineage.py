"""Hashes of what each stage of a run depends on: a stage whose inputs are unchanged is not run again.

A stage's stage.json holds the hash of each of its inputs. The stage's own hash is computed from these and is
an input of the stages that build on it: a change reaches every stage that depends on it, and no other. Of a
dataclass, only fields that differ from their defaults are hashed, so that a new field with a default changes
no hash. A changed default changes no hash either: stages that ran with the old default stay as they are.
"""

import dataclasses
import json
from hashlib import blake2b

from etils.epath import Path

from deepseek_jax.files import read_object, remove_folder, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, say

RECORD = "stage.json"
# The format of stage.json. Those of the first format have no field `format`
FORMAT = 2


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


def run_stage(workdir: Path, name: str, inputs: dict, make):
    """Call make(folder) once for these inputs, with the folder workdir/name: -> the stage's hash.

    inputs: name -> what content_hash takes: settings, data, the hashes of earlier stages. A stage that is
    complete with the same inputs is not run again. If it was interrupted with these inputs, make gets the
    folder as it was left; if it was begun with other inputs, an empty one. Raises ValueError as read_record
    does.
    """
    folder = workdir / name
    record = _record(name, inputs)
    barrier(f"the record of stage {name} is read")
    before = read_record(folder / RECORD) if (folder / RECORD).exists() else None
    hashes = record["inputs"]
    if before is not None and before["inputs"] != hashes:
        changed = sorted(k for k in hashes if before["inputs"].get(k) != hashes[k])
        say(f"stage {name}: {', '.join(changed)} changed, so it is run anew")
        before = None
        _remove(folder)
    own = record["hash"]
    shown = ", ".join(f"{key} {digest}" for key, digest in hashes.items())
    if before is not None and before["complete"]:
        say(f"stage {name} {own}: unchanged ({shown}), not run again")
        return own
    say(f"stage {name} {own}: {shown}")
    # Before make: if make is interrupted, the record names the inputs of the files it leaves
    _write(folder / RECORD, record | {"complete": False})
    make(folder)
    _write(folder / RECORD, record | {"complete": True})
    return own


def _record(name, inputs):
    hashes = {key: content_hash(value) for key, value in inputs.items()}
    own = content_hash({"stage": name} | hashes)
    return {"stage": name, "inputs": hashes, "hash": own, "format": FORMAT}


def _as_json(value):
    """A dataclass as it is hashed: a dict."""
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} of {type(value).__name__} has no hash")
    pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {field.name: given for field, given in pairs if given != _default(field)}


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # MISSING where the field has no default: no value equals it
    return field.default


def _remove(folder):
    """Remove a stage's folder: its files, then its record, which from the start on is of no inputs. A removal
    that is cut short must leave no record of a complete stage beside half of its files, and is begun again.
    """
    barrier(f"{folder.name} is removed")
    if first_process():
        record = folder / RECORD
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
