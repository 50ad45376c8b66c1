"""Limits that both sandboxes share, and the failures of a program in them."""

# Limits of a process in the sandbox
MAX_MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT_BYTES = 2**20
# The failures of a program
CRASHED, TIME_LIMIT = "crashed", "time_limit"


class SandboxError(RuntimeError):
    """The sandbox failed, not the program in it: there is no verdict."""
