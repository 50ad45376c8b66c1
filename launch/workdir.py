"""Whose work directory is it? Each holds the config.json of the one run that it belongs to."""

import json
import os
import re
from pathlib import Path

import jax


def default_workdir(config_path, seed):
    """runs/<config file>[_<arg>][_seed<N>]; N where it is not 0 and the arg does not say it.

    config_path: the value of --config, as in "configs/grpo_small.py:runlocal".
    """
    path, _, arg = config_path.partition(":")
    name = Path(path).stem + (f"_{arg}" if arg else "")
    if seed and "seed=" not in arg:
        name += f"_seed{seed}"
    return Path("runs") / re.sub(r"[^\w=.,+-]", "_", name)


def claim_workdir(workdir, config, may_change=False):
    """Mark a work directory as this config's, by config.json in it, or see that it is already.

    may_change: another config of the same recipe takes the mark over, for a recipe that tells by itself
    what it has to do again. Returns whether this call (process 0 alone writes) made the mark. Raises
    ValueError where the directory belongs to another config, listing the fields that differ, and where
    it has something in it but no config.json; it is then left as it is.
    """
    marker, new = workdir / "config.json", json.loads(config.to_json())
    if marker.exists():
        old = json.loads(marker.read_text())
        if may_change and old.get("recipe") == new.get("recipe"):
            _write(marker, new)
        elif old != new:
            raise ValueError(
                f"{workdir} belongs to another config, and is left as it is:\n  "
                + "\n  ".join(_differences(old, new))
                + "\ngive another --workdir, or set these fields back"
            )
        return False
    if jax.process_index() != 0:
        return False
    fresh = workdir / "config.json.tmp"  # which a claim that was cut short leaves
    if workdir.exists() and (not workdir.is_dir() or set(workdir.iterdir()) - {fresh}):
        raise ValueError(
            f"--workdir={workdir} is not empty and has no config.json, so it is no run's directory, "
            "and is left as it is; give a new or an empty --workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    _write(marker, new)
    return True


def _write(marker, config):
    if jax.process_index() == 0:
        fresh = marker.with_name("config.json.tmp")
        fresh.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(fresh, marker)


def release_workdir(workdir):
    """Undo the claim of a run that failed before it left anything: a mended config may want it."""
    if os.listdir(workdir) == ["config.json"]:
        (workdir / "config.json").unlink()


def _differences(old, new):
    old, new = dict(_leaves(old, "config")), dict(_leaves(new, "config"))
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
