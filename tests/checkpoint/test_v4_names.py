"""The tables of DeepSeek-V4's names: every parameter is filled once, in each of the three spellings."""

import numpy as np
import pytest

from deepseek_jax.checkpoint.tree import abstract_params
from deepseek_jax.checkpoint.v4_names import spelling_of, tensors
from deepseek_jax.models.params import is_float32
from tests.checkpoint import v4_released
from tests.models.v4 import tiny


@pytest.mark.parametrize("spelling", ["released", "mixed", "transformers"])
def test_tensors_fill_every_number_of_every_parameter_once(spelling):
    """Oracle: a count in arrays of the parameters' shapes."""
    counts = {
        path: np.zeros(leaf.shape, int)
        for path, leaf in abstract_params(v4_released.CONFIG).items()
    }
    for places in tensors(v4_released.CONFIG, spelling).values():
        for place in places:
            index = tuple(slice(None) if i is None else i for i in place.index)
            view = counts[place.path][index]
            assert place.turn.to_parameter(np.zeros(place.turn.shape)).shape == view.shape
            counts[place.path][index] += 1
    assert all((count == 1).all() for count in counts.values())


def test_released_names_and_shapes():
    """Oracle: the names and shapes of the released checkpoints, by hand in v4_released."""
    wanted = {
        name: shape for name, (shape, _) in v4_released.all_tensors(v4_released.CONFIG).items()
    }
    found = {n: places[0].turn.shape for n, places in tensors(v4_released.CONFIG).items()}
    assert found == wanted


def test_names_and_shapes_of_transformers():
    """Oracle: the state dict of its model."""
    places = tensors(tiny.config(), "transformers")
    wanted = {name: tensor.shape for name, tensor in tiny.tensors(tiny.hf_model()).items()}
    assert {name: tensor[0].turn.shape for name, tensor in places.items()} == wanted


def test_a_spelling_is_recognised_by_its_own_names():
    """Oracle: the table itself; a folder of another model counts as released."""
    for spelling in ("released", "mixed", "transformers"):
        assert spelling_of(tensors(v4_released.CONFIG, spelling)) == spelling
    assert spelling_of(["lm_head.weight"]) == "released"


def test_the_parameters_that_stay_float32_are_the_ones_that_the_release_stores_so():
    """Oracle: the dtypes of the released checkpoints, by hand in v4_released; and its tables of integers."""
    stored = v4_released.all_tensors(v4_released.CONFIG)
    for name, places in tensors(v4_released.CONFIG).items():
        assert is_float32(places[0].path) == (stored[name][1] in ("f32", "table")), name
