"""What Orbax and its threads print of damaged checkpoints."""

import re

import pytest

from tests import warm
from tests.quick import others_slow

# Saves two steps, damages each file of the newer one in turn, and reads the newest one that is whole
PROGRAM = """
import shutil, sys
from pathlib import Path
import absl.logging, jax.numpy as jnp
from deepseek_jax.checkpoint.store import Store
absl.logging.set_verbosity(int(sys.argv[3]))
base, how = Path(sys.argv[1]), sys.argv[2]
state = {"a": jnp.arange(10000.0), "b": {"c": jnp.ones((300, 300))}}
with Store(base / "good") as store:
    for step in (1, 2):
        store.save(step, {"state": state, "data": {"at": step}})
for file in sorted((base / "good/2").rglob("*")):
    if file.is_dir():
        continue
    shutil.copytree(base / "good", base / "bad")
    damaged, content = base / "bad/2" / file.relative_to(base / "good/2"), file.read_bytes()
    damaged.unlink()
    if how != "missing":
        new = {"empty": b"", "cut": content[: len(content) // 2], "zeroed": bytes(len(content))}
        damaged.write_bytes(new[how])
    with Store(base / "bad") as store:
        print("step", store.newest(state)[0])
    shutil.rmtree(base / "bad")
"""


def told(tmp_path, how, verbosity="-1"):
    """(output, error output) of the program. verbosity: absl's, as launch sets it."""
    done = warm.run("-c", PROGRAM, tmp_path, how, verbosity)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("how", others_slow(("missing", "empty", "cut", "zeroed"), "cut"))
def test_of_a_damaged_checkpoint_only_our_line_is_printed(how, tmp_path):
    """Oracle: by hand: nothing on the error output; a line with the path for each step that is not used."""
    out, err = told(tmp_path, how)
    assert not err
    steps = re.findall(r"^step (\d)$", out, re.MULTILINE)
    assert set(steps) == {"1", "2"} and len(steps) > 10
    # One that Orbax does not take for a checkpoint at all is not named
    assert steps.count("1") >= len(re.findall("bad/2 is damaged: ", out)) >= 2


@pytest.mark.slow
def test_with_verbosity_it_is_all_there(tmp_path):
    """Oracle: Orbax's own words, which the test above does not see."""
    _, err = told(tmp_path, "empty", "1")
    assert "Failed to json parse Metadata file" in err
