"""Measurements that a run makes once, and reads from a file when it resumes."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils.epath import Path

from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.processes import barrier, first_process, from_first


def before_and_after(folder: Path) -> list:
    """Read the measurements in a folder's before.json and after.json, a list of two.

    Raises:
        ValueError: for a damaged file.
    """
    return [_read(folder / f"{when}.json") for when in ("before", "after")]


# Any: what JSON holds
def remembered(path: Path, measure: Callable[[], object]) -> Any:
    """Return the measurement in the file `path`; make and write it if there is no such file.

    Every process calls it.

    Args:
        measure: measure() -> anything that JSON can hold; called only if the file does not exist.

    Raises:
        ValueError: for a damaged file.
    """
    barrier(f"before {path.name} is looked for")
    # Process 0 decides for all, because measuring takes all processes
    if not from_first(np.asarray(path.exists())):
        measurement = measure()
        if first_process():
            write_whole(path, json.dumps(measurement, indent=1))
        # In the form that the file has (lists for tuples), so that a resumed run gets the same
        return json.loads(json.dumps(measurement))
    return _read(path)


def _read(path):
    measurement = read_json(path)
    # A measurement is never empty: pre-training's is a list, any other an object
    if not measurement or not isinstance(measurement, dict | list):
        raise ValueError(f"{path} is damaged, as it holds no measurement; put back a copy")
    return measurement
