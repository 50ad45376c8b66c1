"""Adapters of the notebook's models, and of the checkpoint that a CPU takes, on Colab's chip."""

import pytest

from launch import colab
from tests.launch.test_colab_programs import fit_colabs_chip


@pytest.mark.slow
@pytest.mark.parametrize("model", [*colab.ON_THE_HUB, "smollm2"])
def test_every_program_of_an_adapter_compiles_for_colabs_chip(model):
    """Oracle: the compiler, for v5e:1x1: it takes each program, and its peak is within the chip's memory."""
    found = fit_colabs_chip("grpo_lora", f"model={model}")
    assert found and all(found.values()), found
