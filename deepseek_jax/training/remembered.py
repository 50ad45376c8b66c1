"""Measurements that a run makes once and reads from a file when it resumes."""

import json

import numpy as np
from etils.epath import Path

from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, from_first


def before_and_after(folder: Path):
    """What before.json and after.json in the folder hold."""
    return [_read(folder / f"{when}.json") for when in ("before", "after")]


def remembered(path: Path, measure):
    """The result in the file `path`; without that file, the result of measure(), which is then written there.

    measure() -> anything that JSON can hold.
    """
    barrier(f"before {path.name} is looked for")
    # Process 0 decides for all, because measuring takes all processes
    if not from_first(np.asarray(path.exists())):
        measured = measure()
        if first_process():
            write_whole(path, json.dumps(measured, indent=1))
        # As the file has it, so that a resumed run gets the same: lists for tuples
        return json.loads(json.dumps(measured))
    return _read(path)


def _read(path):
    found = read_json(path)
    # A measurement holds something: of pre-training a list, of others an object
    if not found or not isinstance(found, dict | list):
        raise ValueError(f"{path} is damaged, as it holds no measurement; put back a copy")
    return found
