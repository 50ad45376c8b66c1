"""What each stage of a run was made from, by content: a stage whose inputs are the same is not run again.

A stage's stage.json names the hashes of its inputs. Its own hash is of these, and an input of the stages
that go on from it: a change reaches whatever depends on it, and nothing else. Of a dataclass, only what
differs from its defaults is hashed, so that a new field with a default changes no hash. A default that
becomes another changes none either: stages that were made with it stay as they are.
"""

import dataclasses
import functools
import json
import os
import shutil
from hashlib import blake2b
from typing import Any

from deepseek_jax.parallel.processes import barrier, first_process, say

FORMAT = 2  # of stage.json; the first had no number


@dataclasses.dataclass(frozen=True)
class Formerly:
    """An input, or a part of one, that records without a format hash as `before`."""

    value: Any
    before: Any


def content_hash(content, *, whole=False):
    """16 hexadecimal digits of anything JSON can say, and dataclasses: the same on every machine.

    whole: as records without a format have it: every field of a dataclass but those of settings.added.
    """
    as_json = functools.partial(_as_json, whole=whole)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=as_json)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def all_fields(block):
    """A dataclass as records without a format have it, as a dict."""
    return {field.name: getattr(block, field.name) for field in _former_fields(block)}


def as_given(workdir, name):
    """The block config.NAME as launch wrote it to config.json, which records without a format hash; {} where
    no program started the run.
    """
    path = workdir / "config.json"
    return json.loads(path.read_text()).get(name, {}) if path.exists() else {}


def run_stage(workdir, name, inputs, make):
    """Have make(folder) done once for these inputs, in workdir/name: -> the stage's hash.

    inputs: name -> what content_hash takes: settings, data, the hashes of earlier stages. Not done again
    where it is complete with the same inputs. Where it was cut short with these, make finds what it had left;
    where it was begun with others, an empty folder. A record without a format goes on without one.
    """
    folder = workdir / name
    record = _record(name, inputs)
    barrier(f"the record of stage {name} is read")
    before = _read(folder / "stage.json")
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
    _write(folder / "stage.json", record | {"complete": False})
    make(folder)
    _write(folder / "stage.json", record | {"complete": True})
    return own


def _record(name, inputs, *, whole=False):
    hashes = {key: content_hash(value, whole=whole) for key, value in inputs.items()}
    number = {} if whole else {"format": FORMAT}
    own = content_hash({"stage": name} | hashes)
    return {"stage": name, "inputs": hashes, "hash": own} | number


def _as_json(value, *, whole):
    """What a dataclass is in a hash: a dict."""
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
    return field.default  # MISSING, which equals nothing, where the field has none


def _read(path):
    return json.loads(path.read_text()) if path.exists() else None


def _remove(folder):
    """Take a stage's folder away, its record last: a removal cut short must not pass for a stage."""
    barrier(f"{folder.name} is removed")
    if first_process():
        for path in folder.iterdir():
            if path.name != "stage.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "stage.json").unlink()
    barrier(f"{folder.name} is gone")


def _write(path, record):
    barrier(f"{path} is written")
    if first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(fresh, path)
    barrier(f"{path} is there")
