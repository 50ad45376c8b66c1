"""Measurements that a run makes once and reads from a file when it resumes."""

import json
import os
from pathlib import Path

import numpy as np

from deepseek_jax.parallel.processes import barrier, first_process, from_first


def before_and_after(folder: Path, prefix: str = ""):
    """What PREFIXbefore.json and PREFIXafter.json in the folder hold."""
    return [
        json.loads((folder / f"{prefix}{when}.json").read_text()) for when in ("before", "after")
    ]


def remembered(path: Path, measure):
    """The result in the file `path`; without that file, the result of measure(), which is then written there.

    measure() -> anything that JSON can hold.
    """
    barrier(f"before {path.name} is looked for")
    # Process 0 decides for all, because measuring takes all processes
    if not from_first(np.asarray(path.exists())):
        measured = measure()
        if first_process():
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(measured, indent=1))
            os.replace(fresh, path)
        # As the file has it, so that a resumed run gets the same: lists for tuples
        return json.loads(json.dumps(measured))
    return json.loads(path.read_text())
