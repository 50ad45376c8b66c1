"""What tests.equivalence itself rests on: its faults fit the files, and it tells a drift from rounding."""

import ast

import numpy as np
import pytest

from tests.equivalence.__main__ import ROUNDING, SIGMAS, drift
from tests.equivalence.classes import CLASSES, FAULTS
from tests.mutants.trial import replaced


def test_each_class_has_a_fault_that_fits_its_file():
    """Oracle: the file: the text stands once, and Python reads what takes its place."""
    assert FAULTS.keys() == CLASSES.keys()
    for fault in FAULTS.values():
        ast.parse(replaced(*fault))


@pytest.mark.parametrize(
    ("factor", "shift", "leans"), [(1, 0, False), (1 + 3e-6, 0, True), (1, 3e-6, True)]
)
def test_a_residual_leans_where_gradients_are_longer_or_shifted(factor, shift, leans):
    """Oracle: by hand. Rounding is three times as large, and has no direction."""
    rng = np.random.default_rng(0)
    plain = {(s, p): rng.normal(size=2000) for s in range(4) for p in "abcdefghijklmnop"}
    changed = {
        name: factor * g + shift + 1e-5 * rng.normal(size=g.shape) for name, g in plain.items()
    }
    mean, error = drift(plain, changed)
    assert (abs(mean) > SIGMAS * error + ROUNDING) == leans
