"""The programs of the small experiments, compiled for Colab's chip."""

import json

import pytest

from tests.experiments import EXPERIMENTS
from tests.rollout.test_tpu_decode import compile_apart

COMPILE = """
import json, sys
from launch.planning import topology as slices
from launch.planning.compiled import compile_programs
from launch.planning.summary import fits
from tests.caches import CACHES
from tests.experiments import CONFIGS, load

name, arg = json.loads(sys.argv[1])
config = load(CONFIGS / f"{name}.py", arg)
mesh, chip = slices.planned_mesh("v5e:1x1", config.get("mesh", {}))
# Experiments share programs, such as the pre-training of their base
planned = compile_programs(slices.recipes_programs(config, mesh), CACHES / "plans")
print("result", json.dumps({program.name: fits(program, compiled, chip) for program, compiled in planned}))
"""


# These are compiled by test_colab_more_programs.py: the pipeline has the most programs
PIPELINE_AND_LATER_MODELS = ["r1_small", "v32_grpo_small", "v32_small", "v4_small"]
SMALL = [path.stem for path in EXPERIMENTS if path.stem.endswith("_small")]


def fit_colabs_chip(name, arg):
    """{program of an experiment: whether its peak is within the memory of v5e:1x1}."""
    return compile_apart(COMPILE, json.dumps([name, arg]), timeout=1800)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name not in PIPELINE_AND_LATER_MODELS])
def test_every_program_of_a_small_experiment_compiles_for_colabs_chip(name):
    """Oracle: the compiler, for v5e:1x1: it takes each program, and its peak is within the chip's memory."""
    found = fit_colabs_chip(name, None)
    assert found and all(found.values()), found
