"""The work directory of a run: its name, the config.json that names its owner, and the lock on it."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

MARKER = "config.json"
# Where a run takes place, not what it computes: these may change when it resumes
PLACES = ("mesh", "xla_flags")
# A claim that was interrupted leaves this file
FRESH = f"{MARKER}.tmp"


def default_workdir(config_path: str, seed: int | None):
    """runs/<config file>[_<arg>][_seed<N>], without _seed<N> where N is 0 or the arg names it.

    config_path: the value of --config, as in "configs/grpo_small.py:runlocal".
    """
    path, _, arg = config_path.partition(":")
    name = Path(path).stem + (f"_{arg}" if arg else "")
    if seed and "seed=" not in arg:
        name += f"_seed{seed}"
    return Path("runs") / re.sub(r"[^\w=.,+-]", "_", name)


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: ConfigDict, may_change: bool = False):
    """Lock a work directory for this process, and mark it as this config's.

    The mark is config.json. Process 0 alone writes it and locks the directory. If the body raises before it
    writes anything else, the mark is removed, so that a corrected config can use the directory. The lock ends
    with the process, however that ends. Another mesh is no other config. may_change: another config of the
    same recipe may replace the mark, for a recipe that itself finds out what to run again. Raises ValueError
    where another process has the lock, where the directory belongs to another config (the fields that differ
    are listed), where it has files but no config.json, and where it cannot be created. Existing files stay as
    they are.
    """
    # Here, because launch/common.py imports this module and must not import jax
    import jax

    if jax.process_index() != 0:
        _owner(workdir, config, may_change)
        yield
        return
    with locked(workdir, lambda: _is_busy(workdir)):
        # Through JSON, as the file was: tuples become lists
        old, new = _owner(workdir, config, may_change), json.loads(config.to_json())
        if old is None and set(os.listdir(workdir)) - {FRESH}:
            raise ValueError(
                f"--workdir={workdir} is not empty and has no {MARKER}: it is not a run's directory, and is "
                "left as it is; give a new or an empty --workdir"
            )
        if old != new:
            (workdir / FRESH).write_text(json.dumps(new, indent=2) + "\n")
            # Written whole, then renamed: an interrupted claim leaves no half-written mark
            os.replace(workdir / FRESH, workdir / MARKER)
        try:
            yield
        # Not SystemExit: a run that was asked to stop keeps its directory to resume in
        except Exception:
            if old is None and os.listdir(workdir) == [MARKER]:
                (workdir / MARKER).unlink()
            raise


@contextlib.contextmanager
def locked(workdir: Path, busy: Callable):
    """Create the directory and lock it. The lock is on the directory itself: no lock file stays.

    busy(): called while another process has the lock, again and again; it waits a while, or raises. Raises
    ValueError where the directory cannot be created.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be a directory: {error}") from error
    try:
        while not _lock(folder, workdir):
            busy()
        yield
    finally:
        os.close(folder)


def _lock(folder, workdir):
    """Whether this process now has the lock, or there can be none."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # As on some network file systems
    except OSError as error:
        print(
            f"{workdir} cannot be locked ({error}): make sure that no other run uses it", flush=True
        )
    return True


def _is_busy(workdir):
    raise ValueError(
        f"another process is at work in {workdir}; wait until it ends, or give another --workdir"
    )


def _owner(workdir, config, may_change):
    """The config in the directory's mark, or None. Raises ValueError where `config` may not replace it."""
    marker, new = workdir / MARKER, json.loads(config.to_json())
    if not marker.exists():
        return None
    old = json.loads(marker.read_text())
    differences = list(_differences(old, new))
    if differences and not (may_change and old.get("recipe") == new.get("recipe")):
        raise ValueError(
            f"{workdir} belongs to another config, and is left as it is:\n  "
            + "\n  ".join(differences)
            + "\ngive another --workdir, or set these fields back"
        )
    return old


def _differences(old, new):
    old, new = (
        dict(_leaves({k: v for k, v in fields.items() if k not in PLACES}, "config"))
        for fields in (old, new)
    )
    for name in sorted(old.keys() | new.keys()):
        before, after = (json.dumps(t[name]) if name in t else "absent" for t in (old, new))
        if before != after:
            yield f"{name}: {before} -> {after}"


def _leaves(tree, path):
    """(dotted name, value) of every field that is not itself a block with fields."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, f"{path}.{name}")
    else:
        yield path, tree
