"""A checkpoint that is not what was saved, and how the processes of a run learn of it together."""

import functools
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax

from deepseek_jax.errors import Fault
from deepseek_jax.parallel.processes import from_each

# What keeps a process from reading files that may be whole
NOT_OF_THE_FILES = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
# Names in a message
MOST = 5
# The end of a message about what no earlier checkpoint can take the place of
REMEDY = "; put back a copy, or remove it and make it anew"


class DamagedCheckpoint(Fault, ValueError):
    """A checkpoint that cannot be read, or that is not what was saved."""

    status = 7


def read_together(path: str | Path, read: Callable, names=(), remedy: str = ""):
    """read(), which every process calls. Raises DamagedCheckpoint, on all processes, where the files of one
    of them cannot be read.

    path: what is read. names: of the arrays in it, one of which the message names if the failure does.
    remedy: the end of the message. A failure that is not of the files (memory, permissions) is raised as it
    is, and on the other processes as a RuntimeError.
    """
    result = failure = None
    try:
        result = read()
    # Orbax, tensorstore, safetensors and json raise errors of their own, none of which names the checkpoint
    except Exception as error:
        failure = error
    found = None
    if failure is not None:
        what, why = _name_in(failure, names) or "it", f"{type(failure).__name__}: {failure}"
        damaged = not isinstance(failure, NOT_OF_THE_FILES)
        found = {"damaged": damaged, "why": f"cannot read {what} ({why[:300]})"}
    every = [(process, each) for process, each in enumerate(from_each(found)) if each is not None]
    # Damage first: the other processes may have failed because they waited for the one that found it
    for process, each in sorted(every, key=lambda one: not one[1]["damaged"]):
        if each["damaged"]:
            text = f"{path} is damaged: process {process} {each['why']}{remedy}"
            raise DamagedCheckpoint(text) from failure
        raise failure or RuntimeError(f"process {process} {each['why']} of {path}")
    return result


def digests_in(path: str | Path, saved: dict):
    """The digests that stand with what was saved in `path`. Raises ValueError where there are none."""
    if "digests" not in saved:
        raise ValueError(
            f"{path} has no digests: an earlier version of this project wrote it, and this one does not read "
            "it; make it anew, or use the version that wrote it"
        )
    return saved["digests"]


def check_digests(path: str | Path, found: dict, saved: dict, remedy: str = ""):
    """Raise DamagedCheckpoint, with the names, where parts of a checkpoint are not what was saved.

    found, saved: {name: digest}.
    """
    changed = sorted(name for name in found if found[name] != saved.get(name))
    if changed:
        more = f" and {len(changed) - MOST} more" if len(changed) > MOST else ""
        verb = "are" if len(changed) > 1 else "is"
        raise DamagedCheckpoint(
            f"{path} is damaged: {', '.join(changed[:MOST])}{more} {verb} not what was saved; of its "
            f"{len(found)} parts {len(changed)} are not{remedy}"
        )


def _name_in(failure, names):
    """The array of which a failure tells, or None. Orbax stores a/b as a.b, a folder within its database."""
    text = str(failure)
    for name in names:
        if re.search(rf"['\"]{re.escape(name.replace('/', '.'))}/", text):
            return name
    return None


@functools.cache
def quiet_orbax():
    """Keep what Orbax and its threads say of damaged files off the console of this process, because
    DamagedCheckpoint says it. --verbosity=1 shows it all.
    """
    # Orbax logs each attempt as an error; asyncio logs the errors of readings that nobody waits for any more
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or _shows())
    logging.getLogger("asyncio").addFilter(lambda record: _shows())
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(error):
        # Readings that end after Orbax has given up
        last = traceback.extract_tb(error.exc_traceback)[-1:]
        late = any("orbax" in frame.filename or "uvloop" in frame.filename for frame in last)
        if not late or _shows():
            before(error)

    sys.unraisablehook = hook


def _shows():
    return absl.logging.get_verbosity() >= absl.logging.INFO
