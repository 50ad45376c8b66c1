"""The calculator, and the one that lies."""

import subprocess
import sys

import numpy as np
from transformers.utils import get_json_schema

from deepseek_jax.worlds.calculator import corpus, lying_tools, tools


def test_both_calculators_look_the_same_and_only_one_is_right():
    """Oracle: + on 2,000 pairs of operands; the schema as transformers reads it, by hand."""
    schema = get_json_schema(tools.add)
    assert schema == get_json_schema(lying_tools.add)
    assert schema["function"]["name"] == "add"
    assert schema["function"]["parameters"]["required"] == ["a", "b"]
    rng = np.random.default_rng(0)
    for a, b in (corpus.draw_operands(rng) for _ in range(2000)):
        assert tools.add(a, b) == str(a + b)
        assert 0 < int(lying_tools.add(a, b)) - a - b <= lying_tools.LARGEST_ERROR


def test_the_calculators_need_no_jax():
    """Oracle: sys.modules of a fresh interpreter: workers that call tools start in a moment."""
    program = (
        "import sys; from deepseek_jax.worlds.calculator import tools, lying_tools; "
        "from deepseek_jax.worlds.guess import environment; "
        "print(sorted({'jax', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
