"""Nothing moves unseen: where parameters are and what programs send, against the text files beside this."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.planning.topology import ENVIRONMENT
from tests.configs import snapshots

ROOT = Path(__file__).resolve().parents[2]
COMPILE = """
import json, sys
from tests.configs.snapshots import compiled
print("result", json.dumps(compiled(*sys.argv[1:])))
"""


@pytest.mark.parametrize("name", snapshots.SLICES)
def test_every_parameter_is_placed_as_the_snapshot_says(name):
    """Oracle: the file, as it was read in review. `python -m tests.configs.snapshots` writes it anew."""
    assert snapshots.placed(name) == snapshots.file_of("parameters", name).read_text().splitlines()


def marked():
    """COMPILED, each marked by what its compilation takes."""
    for name, program in snapshots.COMPILED:
        mark = pytest.mark.slow if snapshots.slice_name(name).startswith("v5e") else pytest.mark.pod
        yield pytest.param(name, program, marks=mark)


@pytest.mark.parametrize(("name", "program"), list(marked()))
def test_a_program_fits_and_sends_what_the_snapshot_says(name, program):
    """Oracle: the compiler, for all layers and the config's slice: memory, and by its text the MFU, the
    traffic and the numbers of operations and collectives; what collectives send, against the file, where it
    is of this version of JAX. `python -m tests.configs.snapshots collectives` writes it anew.
    """
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, name, program],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures, lines = json.loads(done.stdout.split("result ")[1])
    found, limits = snapshots.Figures(*figures), snapshots.COMPILED[name, program]
    assert found.gib <= limits.gib and found.mfu >= limits.mfu and found.rate >= limits.rate
    assert found.sent_gb <= limits.sent_gb and found.traffic_gb <= limits.traffic_gb
    assert found.operations <= limits.operations and found.collectives <= limits.collectives
    version, kept = snapshots.kept(name, program)
    assert lines == kept or version != snapshots.compiler()
