"""Which of a test's cases run every time; the others run with `pytest -m slow`."""

import pytest


def others_slow(values, *quick):
    """The values for parametrize, those that are not among `quick` marked slow."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
