"""Limits that both sandboxes share, and names for the ways in which a program fails in them.

Tests: tests/rewards/test_rules.py.
"""

# Limits of one process in a sandbox
MAX_MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT_BYTES = 2**20
# Ways in which a program fails
CRASHED, TIME_LIMIT = "crashed", "time_limit"


class SandboxError(RuntimeError):
    """Failure of the sandbox, not of the program in it, so there is no verdict."""
