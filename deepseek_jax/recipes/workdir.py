"""The work directory of a run: which config it belongs to (config.json), and who may work in it."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from deepseek_jax.files import (
    PARTIAL,
    PARTIALS,
    absolute,
    below,
    is_remote,
    read_object,
    remove_folder,
    write_whole,
)
from deepseek_jax.programs import command, home
from deepseek_jax.recipes.owner import OWNER, names_in, owned, owner_text, read_owner

MARKER = "config.json"
# Fields of config.json in addition to the config's: digests of the code, commits of hub names, and
# the machine that a rehearsal stands for
CODE, HUB, REHEARSED = BESIDE = "code", "hub", "rehearsed"
# Fields that say where a run takes place, not what it computes: they may change when it resumes
PLACES = ("mesh", "xla_flags")
# The beginning of the name of an interrupted claim's file
FRESH = f".{MARKER}{PARTIAL}"
# What a run writes before it computes anything: marks of the run and of its stages, and folders of
# datasets built from files
MARKS, BUILT = {MARKER, "stage.json", "stages.log", "run.json"}, "data"
# The folder of a check; it remains if the check was killed
CHECK = ".deepseek_jax_check"
# Network file systems show a new file to other machines within this time
SHARED_SECONDS = 60.0


def check_starts(config: ConfigDict, workdir: Path):
    """Raise ValueError if the config needs another shipped experiment that has not been run.

    Only texts in the config that name a path in such an experiment's default workdir count. The
    message has the field, and the command that runs the experiment. A run that has begun is not
    checked.
    """
    if (workdir / MARKER).exists():
        return
    for field, value in _texts(config, "config"):
        path_parts = Path(value).parts
        # The folder's name is CONFIG_ARG_seedN, and each part may have underscores
        words = (
            path_parts[1].split("_") if path_parts[:1] == ("runs",) and len(path_parts) > 1 else []
        )
        names = ["_".join(words[:n]) for n in range(len(words), 0, -1)]
        config_name = next((n for n in names if (home() / "configs" / f"{n}.py").is_file()), None)
        if config_name is not None and not Path(value).exists():
            raise ValueError(
                f"{field}={value!r} is not there yet; make it with: {command('train')} "
                f"--config={config_name}"
            )


def _texts(block, path):
    """Yield (dotted path, text) for every text in a config."""
    for name, value in block.items():
        if isinstance(value, ConfigDict):
            yield from _texts(value, f"{path}.{name}")
        elif isinstance(value, str):
            yield f"{path}.{name}", value


class Claim(NamedTuple):
    """A run's claim on its work directory.

    Attributes:
        differences: The fields, in words, in which its config differs from the directory's mark.
        accept: accept() marks the directory with this config. Call it once it is clear which stages
            are rerun.
    """

    differences: list[str]
    accept: Callable[[], None]


@contextlib.contextmanager
def claim_workdir(
    workdir: Path, config: ConfigDict, recorded: Mapping[str, Any] | None = None
) -> Iterator[Claim]:
    """Own a work directory while this run works in it.

    The mark of a directory is its config.json. Only process 0 writes it and owns the directory; see
    owner.owned. A new directory is marked at once. If the body raises before it has computed
    anything, what it wrote is removed, so that a corrected config can use the directory. Existing
    files stay as they are.

    Args:
        workdir: The directory.
        config: The config of the run.
        recorded: What the mark holds in addition to the config, by the names of BESIDE.

    Yields:
        The Claim of the run.

    Raises:
        ValueError: On all processes, if another run works there; if the directory belongs to
            another recipe, or to a rehearsal of another machine; if it has files but no
            config.json; if another version of this project wrote a stage there in another format;
            if it cannot be created or written; or if a process does not share it.
    """
    with _owned_by_all(workdir, config, recorded, _claimed) as claim:
        yield claim


@contextlib.contextmanager
def check_workdir(
    workdir: Path, config: ConfigDict, recorded: Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, Claim]]:
    """Own a work directory while a check finds out whether a run of this config may use it.

    It has the arguments and errors of claim_workdir. Nothing stays at the end: the check's folder
    is removed, and so is a directory that was not there before.

    Yields:
        (a folder in it for data that the check builds, the Claim).
    """
    with _owned_by_all(workdir, config, recorded, _checked) as claim:
        yield absolute(workdir) / CHECK, claim


@contextlib.contextmanager
def _owned_by_all(workdir, config, recorded, own_workdir):
    """Own a directory in process 0, and yield the Claim on all processes.

    Args:
        workdir: The directory.
        config: The config of the run.
        recorded: The argument of claim_workdir.
        own_workdir: own_workdir(workdir, mark) is a context that owns the directory; it yields
            (token, the mark before).
    """
    # Imported here because launch/common.py imports this module and must not import jax
    import jax

    workdir, new_mark = absolute(workdir), mark_of(config, recorded or {})
    with contextlib.ExitStack() as stack:
        token = old_mark = failure = None
        if jax.process_index() == 0:
            try:
                token, old_mark = stack.enter_context(own_workdir(workdir, new_mark))
            # Raised later: the other processes wait for the outcome
            except ValueError as error:
                failure = error
        differences = list(_differences(old_mark, new_mark)) if old_mark is not None else []
        shared_differences = _check_shared(
            workdir, token, failure, differences, lambda: _owner(workdir, new_mark)
        )

        def accept():
            if token is not None and old_mark != new_mark:
                # Written whole: an interruption leaves no half of a mark
                write_whole(workdir / MARKER, json.dumps(new_mark, indent=2) + "\n")

        yield Claim(shared_differences, accept)


@contextlib.contextmanager
def _fit(workdir, new_mark):
    """Own a directory that a run with the mark `new_mark` may use.

    Yields:
        (token of owner.owned, the directory's mark or None).
    """
    with owned(workdir, lambda owner: _is_busy(workdir, owner)) as token:
        _check_format(workdir)
        old_mark = _owner(workdir, new_mark)
        others = {name for name in names_in(workdir) - {CHECK} if not name.startswith(FRESH)}
        if old_mark is None and others:
            raise ValueError(
                f"--workdir={workdir} is not empty and has no {MARKER}: it is not a run's directory, and is "
                "left as it is; give a new or an empty --workdir"
            )
        yield token, old_mark


@contextlib.contextmanager
def _checked(workdir, new_mark):
    """Own the directory for check_workdir, in process 0."""
    absent_folders = (
        [] if is_remote(workdir) else [f for f in (workdir, *workdir.parents) if not f.exists()]
    )
    try:
        with _fit(workdir, new_mark) as token_and_mark:
            try:
                yield token_and_mark
            finally:
                remove_folder(workdir / CHECK)
    finally:
        # Another program may have written something there
        with contextlib.suppress(OSError):
            for folder in absent_folders:
                folder.rmdir()


@contextlib.contextmanager
def _claimed(workdir, new_mark):
    """Own the directory for claim_workdir, in process 0."""
    with _fit(workdir, new_mark) as (token, old_mark):
        if old_mark is None:
            write_whole(workdir / MARKER, json.dumps(new_mark, indent=2) + "\n")
        _remove_partial(workdir)
        try:
            yield token, old_mark
        # Not SystemExit: a run that was asked to stop resumes in its directory
        except Exception:
            if old_mark is None and not _has_results(workdir):
                for name in names_in(workdir):
                    _remove(workdir / name)
            raise


def _check_format(workdir):
    """Raise ValueError if another version of this project wrote a stage here in another format."""
    from deepseek_jax.training.lineage import RECORD, read_record

    # Without the mark it is not a run's directory, and its files may be anything
    if (workdir / MARKER).exists():
        for path in below(workdir):
            if path.name == RECORD:
                read_record(path)


def _remove_partial(workdir):
    """Remove incomplete output of killed processes; in a bucket its next writer does that."""
    remove_folder(workdir / CHECK)
    if not is_remote(workdir):
        for path in list(Path(workdir).rglob(PARTIALS)):
            _remove(path)


def _remove(path):
    remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def _has_results(workdir):
    """Return True if something in the directory was computed."""
    for path in below(workdir):
        *folders, name = path.relative_to(workdir).parts
        may_go = name in MARKS or name.startswith(OWNER) or BUILT in folders
        if path.is_file() and not may_go:
            return True
    return False


def _check_shared(workdir, token, failure, differences, check):
    """Check that all processes share the claim of process 0.

    Args:
        workdir: The directory.
        token: The token of process 0.
        failure: The ValueError with which process 0 failed to claim the directory, or None.
        differences: The differences that process 0 sees between the config and the mark.
        check: Raises ValueError if the directory does not belong to this config; all other
            processes call it.

    Returns:
        The differences that process 0 sees.

    Raises:
        ValueError: On every process, if process 0 could not claim the directory, if a process does
            not see the claim, or if check() raises.
    """
    from deepseek_jax.parallel.processes import first_process, from_each

    claim = from_each([token, None if failure is None else str(failure), differences])[0]
    if failure is not None:
        raise failure
    if claim[1] is not None:
        raise ValueError(claim[1])
    sees_claim, problem = first_process() or _sees(workdir, claim[0]), None
    if sees_claim and not first_process():
        try:
            check()
        except ValueError as error:
            problem = str(error)
    reports = from_each([sees_claim, socket.gethostname(), str(workdir), problem])
    blind_processes = [
        f"{i} on {host}" for i, (sees_claim, host, _, _) in enumerate(reports) if not sees_claim
    ]
    if blind_processes:
        raise ValueError(
            f"--workdir={reports[0][2]} of process 0 on {reports[0][1]} is not the directory of process "
            f"{', '.join(blind_processes)}: give all processes one --workdir that they share, in a bucket "
            "(gs://) or on a network file system"
        )
    for *_, problem in reports:
        if problem is not None:
            raise ValueError(problem)
    return claim[2]


def _sees(workdir, token):
    deadline = time.monotonic() + SHARED_SECONDS
    while (read_owner(workdir) or {}).get("token") != token:
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def _is_busy(workdir, owner):
    raise ValueError(
        f"another process is at work in {workdir}: {owner_text(owner)}; wait until it ends, or give another "
        "--workdir"
    )


def _owner(workdir, new_mark):
    """Return the mark of the directory, or None.

    Raises:
        ValueError: `new_mark` has another recipe, or is a rehearsal of another machine.
    """
    marker = workdir / MARKER
    if not marker.exists():
        return None
    old_mark = read_object(marker)
    if any(old_mark.get(name) != new_mark.get(name) for name in ("recipe", REHEARSED)):
        raise ValueError(
            f"{workdir} belongs to another config, and is left as it is:\n  "
            + "\n  ".join(_differences(old_mark, new_mark))
            + "\ngive another --workdir, or set these fields back"
        )
    return old_mark


def mark_of(config: ConfigDict, recorded: Mapping[str, Any]) -> dict:
    """Return the content of config.json: the config, and everything recorded in addition to it."""
    # Through JSON, as in the file: tuples become lists
    extra_fields = {name: value for name, value in recorded.items() if value}
    return json.loads(config.to_json()) | json.loads(json.dumps(extra_fields))


def read_mark(workdir: Path) -> tuple[dict, dict]:
    """Return (the config of a run's folder, the commits of its hub names).

    Both are empty if the folder has no run.
    """
    mark = read_object(workdir / MARKER) if (workdir / MARKER).exists() else {}
    extra_fields = {name: mark.pop(name, {}) for name in BESIDE}
    return mark, extra_fields[HUB]


def _differences(old_mark, new_mark):
    old_leaves, new_leaves = (
        dict(_leaves({k: v for k, v in fields.items() if k not in PLACES}, "config"))
        for fields in (old_mark, new_mark)
    )
    for name in sorted(old_leaves.keys() | new_leaves.keys()):
        before, after = (
            json.dumps(leaves[name]) if name in leaves else "absent"
            for leaves in (old_leaves, new_leaves)
        )
        if before != after:
            yield f"{name}: {before} -> {after}"


def _leaves(tree, path):
    """Yield (dotted name, value) for every field that is not itself a block with fields."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, f"{path}.{name}")
    else:
        yield path, tree
