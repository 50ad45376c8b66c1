"""Sequences of texts that are computed one by one, when they are read."""

from collections.abc import Callable, Sequence


class LazyTexts(Sequence):
    """Text i is read(places[i]), a str, called each time that it is read. A slice is a LazyTexts too."""

    def __init__(self, read: Callable, places: Sequence):
        self._read, self._places = read, places

    def __len__(self):
        return len(self._places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return LazyTexts(self._read, self._places[index])
        return self._read(self._places[index])


def picked(texts: Sequence, rows: Sequence):
    """The texts of these rows, without reading them."""
    return LazyTexts(texts.__getitem__, rows)


def joined(parts):
    """The texts of several sequences, one sequence after the other, without reading them."""
    places = [(part, index) for part in parts for index in range(len(part))]
    return LazyTexts(lambda place: place[0][place[1]], places)
