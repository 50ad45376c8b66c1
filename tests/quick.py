"""Which of a test's cases run every time; the others run with `pytest -m slow`."""

import pytest


def others_slow(values, *quick):
    """The values for parametrize, those that are not among `quick` marked slow."""
    rows = [(v, v if isinstance(v, tuple) else (v,)) for v in values]
    return [v if v in quick else pytest.param(*row, marks=pytest.mark.slow) for v, row in rows]
