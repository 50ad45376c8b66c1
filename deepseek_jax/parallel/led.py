"""Calls that process 0 decides on, and that the devices of all processes compute."""

from collections.abc import Callable

import numpy as np

from deepseek_jax.parallel.processes import first_process, from_first


class Led:
    """function(*arrays), called by process 0 alone and computed by all processes together.

    A context manager that all enter. In its block process 0 makes any number of calls, and none is possible
    too; each other process makes the same calls while it enters, and comes to the block when process 0 has
    left it, by an exception or not. So a function of arrays on the whole mesh can feed what a single process
    does, such as writing a file. like: numpy arrays of the arguments' shapes and dtypes. With a single
    process a call costs nothing more.
    """

    def __init__(self, function: Callable, like: tuple):
        self.function, self.like = function, like

    def __call__(self, *arrays):
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
