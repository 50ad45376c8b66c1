"""How a checkpoint's tensor turns into a parameter, from one line of text read both ways.

A spec such as "(h n+~r) q -> l q h n+r" reads: the tensor has rows for h heads of n + r each, and q columns;
the parameter is its transpose, heads split off, one layer of a stack. Letters are sizes. Further,
  ~r        the axis ends in rotary pairs stored side by side (0, 1 are the first), as DeepSeek does; the
            parameter holds them half-split (0, 2, ..., 1, 3, ...), and attention scores stay the same
  n+u -> n  the parameter takes that part of the axis; another line places the other part
  l, e, 0   on the right alone: where along a stacked axis the tensor lies: its layer, its expert, a half
"""

import re
from typing import NamedTuple

import numpy as np


class Turn(NamedTuple):
    """A spec with its sizes put in. Hashable, for jit.

    shape: the tensor's. view: the same with heads split off. part: (axis, start, stop), what the parameter
    takes of the view. pairs: (axis, start) of the rotary pairs in the view, or None. order: the
    transposition. index: the parameter's axes, ":" where the tensor fills one, else its letter or number.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    part: tuple[int, int, int]
    pairs: tuple[int, int] | None
    order: tuple[int, ...]
    index: tuple[str | int, ...]

    def to_parameter(self, tensor):
        """A whole tensor, numpy or jax -> the axes of the parameter that it fills."""
        tensor = tensor.reshape(self.view)
        if self.pairs:
            axis, start = self.pairs
            tensor = tensor.take(_half_split(self.view[axis], start), axis=axis)
        axis, start, stop = self.part
        return tensor[(slice(None),) * axis + (slice(start, stop),)].transpose(self.order)

    def to_view(self, parameter):
        """The inverse, up to joining the parts along their axis and the heads."""
        tensor = parameter.transpose(np.argsort(self.order))
        if self.pairs:
            axis, start = self.pairs
            tensor = tensor.take(np.argsort(_half_split(self.view[axis], start)), axis=axis)
        return tensor


class Place(NamedTuple):
    """Where a tensor (or a part of one) lies: the parameter's path, the index in it (None: a whole axis)."""

    path: str
    index: tuple[int | None, ...]
    turn: Turn


def parse(spec, sizes):
    """Read a spec against sizes, a dict of letter to int: -> Turn. Axes with ~ are never split into parts."""
    left, right = spec.split(" -> ")
    groups = [(group or word).split() for group, word in re.findall(r"\((.*?)\)|(\S+)", left)]
    axes = [word for group in groups for word in group]

    def size(word):
        return sum(sizes[letter] for letter in word.replace("~", "").split("+"))

    view = tuple(size(word) for word in axes)
    part, order, index = (0, 0, view[0]), [], []
    for word in right.split():
        found = [
            i for i, axis in enumerate(axes) if word in (axis.replace("~", ""), *axis.split("+"))
        ]
        index.append(":" if found else int(word) if word.isdigit() else word)
        order += found
        if found and size(axes[found[0]]) != size(word):
            before, _, _ = axes[found[0]].partition(word)
            start = size(before.rstrip("+")) if before else 0
            part = (found[0], start, start + size(word))
    pairs = [(i, view[i] - sizes[axis[-1]]) for i, axis in enumerate(axes) if "~" in axis]
    shape = tuple(int(np.prod([size(word) for word in group])) for group in groups)
    return Turn(shape, view, part, pairs[0] if pairs else None, tuple(order), tuple(index))


def _half_split(size, start):
    pairs = np.arange(start, size)
    return np.concatenate([np.arange(start), pairs[::2], pairs[1::2]])
