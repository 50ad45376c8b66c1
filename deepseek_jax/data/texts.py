"""Sequences of texts that are computed one by one, when they are read.

Tests: tests/rewards/test_score_together.py.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np


class LazyTexts(Sequence):
    """Sequence of texts in which text i is read(places[i]), computed each time it is read.

    A slice is a LazyTexts too.

    Args:
        read: Returns the text (str) for one of the places.
        places: Sequence with an argument of read for each text.
    """

    def __init__(self, read: Callable, places: Sequence | np.ndarray):
        self._read, self._places = read, places

    def __len__(self):
        return len(self._places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return LazyTexts(self._read, self._places[index])
        return self._read(self._places[index])


def picked(texts: Sequence, rows: Sequence[int] | np.ndarray) -> LazyTexts:
    """Return the texts of these rows as a LazyTexts, without reading them."""
    return LazyTexts(texts.__getitem__, rows)


def joined(sequences: Iterable[Sequence]) -> LazyTexts:
    """Concatenate several sequences of texts as a LazyTexts, without reading them."""
    places = [(part, index) for part in sequences for index in range(len(part))]
    return LazyTexts(lambda place: place[0][place[1]], places)
