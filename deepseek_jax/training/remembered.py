"""Measurements that a run makes once and reads from a file when it resumes."""

import json

import numpy as np
from etils.epath import Path

from deepseek_jax.files import write_whole
from deepseek_jax.parallel.processes import barrier, first_process, from_first


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
    return json.loads(path.read_text())
