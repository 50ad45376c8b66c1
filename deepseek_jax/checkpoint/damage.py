"""Damaged checkpoints: find the damage, and report it on all processes of a run together."""

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

# Errors that are not the files' fault: the files may be undamaged
NOT_OF_THE_FILES = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
# Most names of arrays in a message
MOST = 5
# The end of a message about a checkpoint that no earlier one can replace
REMEDY = "; put back a copy, or remove it and make it anew"


class DamagedCheckpoint(Fault, ValueError):
    """A checkpoint that cannot be read, or that is not what was saved."""

    status = 7


def read_together(path: str | Path, read: Callable, names=(), remedy: str = ""):
    """Call a function that reads files, and raise an error on all processes if it fails on one.

    Every process calls it. A failure that is not the files' fault (memory, permissions) is raised
    unchanged on its process, and as a RuntimeError on the others.

    Args:
        path: The place of the files, for messages.
        read: A function without arguments.
        names: Names of the arrays in the files. The message has the one that the failure mentions.
        remedy: The end of the message.

    Returns:
        The result of read() on this process.

    Raises:
        DamagedCheckpoint: One process cannot read its files. All processes raise it.
        RuntimeError: Another process failed, but its files are not to blame.
    """
    result = failure = None
    try:
        result = read()
    # Orbax, tensorstore, safetensors and json raise different errors; none names the checkpoint
    except Exception as error:
        failure = error
    own_report = None
    if failure is not None:
        array_name, reason = (
            _name_in(failure, names) or "it",
            f"{type(failure).__name__}: {failure}",
        )
        is_damaged = not isinstance(failure, NOT_OF_THE_FILES)
        own_report = {"damaged": is_damaged, "why": f"cannot read {array_name} ({reason[:300]})"}
    reports = [
        (process, report)
        for process, report in enumerate(from_each(own_report))
        if report is not None
    ]
    # Damage first: other processes may have failed only because they waited for the one that met it
    for process, report in sorted(reports, key=lambda pair: not pair[1]["damaged"]):
        if report["damaged"]:
            text = f"{path} is damaged: process {process} {report['why']}{remedy}"
            raise DamagedCheckpoint(text) from failure
        raise failure or RuntimeError(f"process {process} {report['why']} of {path}")
    return result


def digests_in(path: str | Path, saved: dict):
    """Return the digests that were saved with a checkpoint.

    Args:
        path: The checkpoint, for messages.
        saved: The dict of metadata that was saved with it.

    Raises:
        ValueError: There are no digests, because an earlier version of this project wrote the
            checkpoint.
    """
    if "digests" not in saved:
        raise ValueError(
            f"{path} has no digests: an earlier version of this project wrote it, and this one does not read "
            "it; make it anew, or use the version that wrote it"
        )
    return saved["digests"]


def check_digests(path: str | Path, actual_digests: dict, saved: dict, remedy: str = ""):
    """Raise DamagedCheckpoint, with the names, if parts of a checkpoint are not what was saved.

    Args:
        path: The checkpoint, for messages.
        actual_digests: {name: digest} of the parts as they are now.
        saved: {name: digest} of the parts as they were saved. A part that only one of the two has
            is not what was saved.
        remedy: The end of the message.
    """
    names = actual_digests.keys() | saved.keys()
    changed_names = sorted(name for name in names if actual_digests.get(name) != saved.get(name))
    if changed_names:
        and_others = f" and {len(changed_names) - MOST} more" if len(changed_names) > MOST else ""
        verb = "are" if len(changed_names) > 1 else "is"
        raise DamagedCheckpoint(
            f"{path} is damaged: {', '.join(changed_names[:MOST])}{and_others} {verb} not what was saved; of "
            f"its {len(names)} parts {len(changed_names)} are not{remedy}"
        )


def _name_in(failure, names):
    """Return the name of the array that a failure mentions, or None.

    Orbax stores the array a/b as a.b, a folder within its database.
    """
    text = str(failure)
    for name in names:
        if re.search(rf"['\"]{re.escape(name.replace('/', '.'))}/", text):
            return name
    return None


@functools.cache
def quiet_orbax():
    """Hide what Orbax and its threads print about damaged files: DamagedCheckpoint says it.

    It acts on the console of this process. --verbosity=1 shows everything.
    """
    # Orbax logs each attempt as an error, and asyncio the errors of reads that nobody waits for
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or _shows())
    logging.getLogger("asyncio").addFilter(lambda record: _shows())
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    default_hook = sys.unraisablehook

    def hook(error):
        # Reads that end after Orbax has given up
        last_frames = traceback.extract_tb(error.exc_traceback)[-1:]
        is_late_read = any(
            "orbax" in frame.filename or "uvloop" in frame.filename for frame in last_frames
        )
        if not is_late_read or _shows():
            default_hook(error)

    sys.unraisablehook = hook


def _shows():
    return absl.logging.get_verbosity() >= absl.logging.INFO
