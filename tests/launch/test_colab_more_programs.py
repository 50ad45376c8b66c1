"""The programs of the small pipeline and of the models after V3, compiled for Colab's chip."""

import pytest

from tests.launch.test_colab_programs import PIPELINE_AND_LATER_MODELS, fit_colabs_chip


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINE_AND_LATER_MODELS)
def test_every_program_compiles_for_colabs_chip(name):
    """Oracle: the compiler, for v5e:1x1: it takes each program, and its peak is within the chip's memory."""
    found = fit_colabs_chip(name, None)
    assert found and all(found.values()), found
