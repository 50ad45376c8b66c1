"""The experiments that take longest to compile for Colab's chip: a pipeline, and checkpoints' adapters."""

import pytest

from launch import colab
from tests.launch.test_colab_programs import PIPELINE, fit_colabs_chip

ADAPTED = [("grpo_lora", f"model={model}") for model in (*colab.ON_THE_HUB, "smollm2")]


@pytest.mark.slow
@pytest.mark.parametrize("name, arg", [(PIPELINE, None), *ADAPTED])
def test_every_program_compiles_for_colabs_chip(name, arg):
    """Oracle: the compiler, for v5e:1x1: it takes each program, and its peak is within the chip's memory."""
    found = fit_colabs_chip(name, arg)
    assert found and all(found.values()), found
