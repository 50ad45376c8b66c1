"""Limits that both sandboxes share, and the failures of a program in them."""

MAX_MEMORY_BYTES = 512 * 2**20  # of a process in the sandbox
MAX_OUTPUT_BYTES = 2**20
CRASHED, TIME_LIMIT = "crashed", "time_limit"  # the failures of a program


class SandboxError(RuntimeError):
    """The sandbox failed, not the program in it: there is no verdict."""
