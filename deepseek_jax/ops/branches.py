"""The layout of a row in which completions share one prompt.

Tests: tests/ops/test_attention.py.
"""

from typing import NamedTuple


class Branches(NamedTuple):
    """A row's layout [prefix, branch 1, ..., branch n]: a branch sees only the prefix and itself.

    Attributes:
        prefix_length: Tokens of the prefix.
        branches: n.
    """

    prefix_length: int
    branches: int

    def split(self, a):
        """Split a row: [b t ...] -> the prefix [b s ...] and the branches [b n t ...].

        In the branches, t is the length of one branch.
        """
        prefix, rest = a[:, : self.prefix_length], a[:, self.prefix_length :]
        return prefix, rest.reshape(len(a), self.branches, -1, *a.shape[2:])
