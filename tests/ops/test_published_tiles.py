"""Each form of a TPU that is a kernel, emulated, at the tiles of published configs and just beside them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.machine_checks import LIMITS
from tests.ops.published_tiles import CASES
from tests.quick import others_slow


@pytest.mark.parametrize("name", others_slow(CASES, "quantize, 513 rows"))
def test_a_kernel_at_the_tiles_of_published_configs_is_its_plain_form(name):
    """Oracle: the op's plain form, results and gradients; the limit is the doctor's, of results that are
    rounded to bfloat16. The form that ran is a kernel.
    """
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.published_tiles", name],
        cwd=Path(__file__).parents[2],
        env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.fullmatch(r"(\w+) as (kernel|megablox|splash) is off by (\S+)\n", done.stdout)
    assert said, done.stdout
    assert name.startswith(said[1]) and float(said[3]) <= LIMITS["bfloat16"]
    print(done.stdout)
