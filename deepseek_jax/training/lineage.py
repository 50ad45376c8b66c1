"""What each stage of a run was made from, by content: a stage whose inputs are the same is not run again.

A stage's stage.json names the hashes of its inputs. Its own hash is of these, and an input of the stages
that go on from it: a change reaches whatever depends on it, and nothing else.
"""

import json
import os
import shutil
from hashlib import blake2b

from deepseek_jax.parallel.processes import barrier, first_process, say


def content_hash(content):
    """16 hexadecimal digits of anything JSON can say: the same on every machine."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def run_stage(workdir, name, inputs, make):
    """Have make(folder) done once for these inputs, in workdir/name: -> the stage's hash.

    inputs: name -> what JSON can say: settings, data, the hashes of earlier stages. Not done again where it
    is complete with the same inputs. Where it was cut short with these, make finds what it had left; where
    it was begun with others, an empty folder.
    """
    folder = workdir / name
    hashes = {key: content_hash(value) for key, value in inputs.items()}
    own = content_hash({"stage": name} | hashes)
    record = {"stage": name, "inputs": hashes, "hash": own}
    barrier(f"the record of stage {name} is read")
    before = _read(folder / "stage.json")
    if before is not None and before["inputs"] != hashes:
        changed = sorted(k for k in hashes if before["inputs"].get(k) != hashes[k])
        say(f"stage {name}: {', '.join(changed)} changed, so it is run anew")
        before = None
        _remove(folder)
    shown = ", ".join(f"{key} {digest}" for key, digest in hashes.items())
    if before is not None and before["complete"]:
        say(f"stage {name} {own}: unchanged ({shown}), not run again")
        return own
    say(f"stage {name} {own}: {shown}")
    _write(folder / "stage.json", record | {"complete": False})
    make(folder)
    _write(folder / "stage.json", record | {"complete": True})
    return own


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
