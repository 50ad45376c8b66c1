"""What the sandboxes share: their limits, and how a program's run in one of them can end."""

MAX_MEMORY_BYTES = 512 * 2**20  # of a process in the sandbox
MAX_OUTPUT_BYTES = 2**20
CRASHED, TIME_LIMIT = "crashed", "time_limit"  # how a program fails to end


class SandboxError(RuntimeError):
    """The sandbox failed and not the program in it: there is no verdict."""
