"""The layout of a row that a prompt shares with its completions."""

from typing import NamedTuple


class Branches(NamedTuple):
    """A row's layout [prefix, branch 1, ..., branch n]: branches see the prefix and themselves alone."""

    prefix_length: int
    branches: int

    def split(self, a):
        """[b t ...] -> the prefix [b s ...] and the branches [b n t ...], t being the length of one."""
        prefix, rest = a[:, : self.prefix_length], a[:, self.prefix_length :]
        return prefix, rest.reshape(len(a), self.branches, -1, *a.shape[2:])
