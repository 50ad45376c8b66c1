"""Led: function calls that process 0 decides on, and that all processes compute together.

Tests: tests/parallel/test_meeting.py.
"""

from collections.abc import Callable

import numpy as np

from deepseek_jax.parallel.processes import first_process, from_first


class Led:
    """A function that only process 0 calls, and that all processes compute together.

    With it, a function of arrays on the whole mesh can feed what a single process does, such as
    writing a file.

    It is a context manager that all processes enter. In its block process 0 makes any number of
    calls, also none. Each other process makes the same calls while it enters, and comes to the
    block after process 0 has left it, by an exception or not. With a single process a call costs
    nothing more.

    Attributes:
        function: Called as function(*arrays).
        like: numpy arrays of the arguments' shapes and dtypes.
    """

    def __init__(self, function: Callable, like: tuple):
        self.function, self.like = function, like

    def __call__(self, *arrays):
        """Compute function(*arrays) on all processes; only process 0 calls this."""
        from_first((np.asarray(True), arrays))
        return self.function(*arrays)

    def __enter__(self):
        if first_process():
            return self
        calls, arrays = from_first((np.asarray(False), self.like))
        while calls:
            self.function(*arrays)
            calls, arrays = from_first((np.asarray(False), self.like))
        return self

    def __exit__(self, *_):
        if first_process():
            from_first((np.asarray(False), self.like))
