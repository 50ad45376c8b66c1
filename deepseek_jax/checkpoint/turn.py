"""Conversion of a checkpoint's tensor to a parameter and back, described by one line: the spec.

The spec "(h n+~r) q -> l q h n+r" says: the tensor has rows for h heads of n + r each, and q
columns. The parameter is its transpose, has the heads as a separate axis, and is one layer of a
stack. Letters are sizes.

  ~r        the axis ends in rotary pairs that are stored next to each other (0, 1 are the first),
            as DeepSeek does; the parameter has them half-split (0, 2, ..., 1, 3, ...), and
            attention scores stay the same
  n+u -> n  the parameter takes that part of the axis; another line places the other part
  l, e, 0   only on the right: the tensor's index along a stacked axis: its layer, its expert,
            a half

Tests: tests/checkpoint/test_hf_names.py.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Turn:
    """A spec with its sizes filled in, hashable for jit.

    Attributes:
        shape: The tensor's shape.
        view: The tensor's shape with the heads split off.
        row_axes: Number of axes of the view that are the tensor's rows.
        part: (axis, start, stop), the part of the view that the parameter takes.
        pairs: (axis, start) of the rotary pairs in the view, or None.
        order: The transposition.
        index: One entry for each axis of the parameter: ":" if the tensor fills it, else its letter
            or number.
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    row_axes: int
    part: tuple[int, int, int]
    pairs: tuple[int, int] | None
    order: tuple[int, ...]
    index: tuple[str | int, ...]

    def to_parameter(self, tensor):
        """Convert a whole tensor, numpy or jax, to the axes of the parameter that it fills."""
        tensor = tensor.reshape(self.view)
        if self.pairs:
            axis, start = self.pairs
            tensor = tensor.take(_half_split(self.view[axis], start), axis=axis)
        axis, start, stop = self.part
        return tensor[(slice(None),) * axis + (slice(start, stop),)].transpose(self.order)

    def block(self, ranges: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, "Turn"]:
        """Find the rows of the tensor that a block of the parameter needs.

        Args:
            ranges: (start, stop) along each axis of the parameter that the tensor fills. Columns
                stay whole.

        Returns:
            (rows, turn): int64[rows], and the Turn of a tensor with only these rows, in this order.
        """
        axis_of_part, first, last = self.part
        axis_positions = []
        for axis, size in enumerate(self.view[: self.row_axes]):
            positions = np.arange(size)
            if self.pairs and self.pairs[0] == axis:
                positions = _half_split(size, self.pairs[1])
            if axis == axis_of_part:
                positions = positions[first:last]
            axis_positions.append(positions[slice(*ranges[self.order.index(axis)])])
        rows = np.ravel_multi_index(np.ix_(*axis_positions), self.view[: self.row_axes]).ravel()
        view = (*map(len, axis_positions), *self.view[self.row_axes :])
        return rows, dataclasses.replace(
            self,
            shape=(len(rows), *self.shape[1:]),
            view=view,
            part=self.part if axis_of_part >= self.row_axes else (0, 0, view[0]),
            pairs=self.pairs if self.pairs and self.pairs[0] >= self.row_axes else None,
        )

    def to_view(self, parameter):
        """Convert a parameter to the tensor's view: the inverse of to_parameter.

        The caller joins the parts along their axis, and the heads.
        """
        # argsort inverts a permutation, here and below
        tensor = parameter.transpose(np.argsort(self.order))
        if self.pairs:
            axis, start = self.pairs
            tensor = tensor.take(np.argsort(_half_split(self.view[axis], start)), axis=axis)
        return tensor


@dataclasses.dataclass(frozen=True)
class Place:
    """The place in a parameter that a tensor, or a part of it, fills.

    Attributes:
        index: The index in the parameter; None stands for a whole axis.
        turn: The conversion of the tensor to this place.
    """

    path: str
    index: tuple[int | None, ...]
    turn: Turn


def parse(spec: str, axis_sizes: Mapping[str, int]) -> Turn:
    """Read a spec, with the sizes of its letters, as a Turn.

    Args:
        spec: Axes with ~ are never split into parts.
        axis_sizes: {letter: size}.
    """
    tensor_spec, parameter_spec = spec.split(" -> ")
    groups = [
        (group or word).split() for group, word in re.findall(r"\((.*?)\)|(\S+)", tensor_spec)
    ]
    axes = [word for group in groups for word in group]

    def size(word):
        return sum(axis_sizes[letter] for letter in word.replace("~", "").split("+"))

    view = tuple(size(word) for word in axes)
    part = (0, 0, view[0])
    order: list[int] = []
    index: list[str | int] = []
    for word in parameter_spec.split():
        tensor_axes = [
            i for i, axis in enumerate(axes) if word in (axis.replace("~", ""), *axis.split("+"))
        ]
        index.append(":" if tensor_axes else int(word) if word.isdigit() else word)
        order += tensor_axes
        if tensor_axes and size(axes[tensor_axes[0]]) != size(word):
            # u of n+u starts after the n rows before it
            preceding_letters, _, _ = axes[tensor_axes[0]].partition(word)
            start = size(preceding_letters.rstrip("+")) if preceding_letters else 0
            part = (tensor_axes[0], start, start + size(word))
    # Rotary pairs fill the last letter of their axis
    all_pairs = ((i, view[i] - axis_sizes[axis[-1]]) for i, axis in enumerate(axes) if "~" in axis)
    shape = tuple(int(np.prod([size(word) for word in group])) for group in groups)
    pairs = next(all_pairs, None)
    return Turn(shape, view, len(groups[0]), part, pairs, tuple(order), tuple(index))


def _half_split(size, start):
    pairs = np.arange(start, size)
    return np.concatenate([np.arange(start), pairs[::2], pairs[1::2]])
