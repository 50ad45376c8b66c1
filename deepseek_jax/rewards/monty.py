"""A sandbox in pydantic-monty: a subset of Python, in a process without access to the outside.

It needs no privilege and runs wherever its wheel installs.

Tests: tests/rewards/test_program.py.
"""

import ast
import importlib.util
import re
import sys

from deepseek_jax.rewards.sandbox import (
    CRASHED,
    MAX_MEMORY_BYTES,
    MAX_OUTPUT_BYTES,
    TIME_LIMIT,
    SandboxError,
)

# Standard streams and exits, which monty lacks. Its `sys` cannot be changed, so programs get `_sys`
PRELUDE = """
import sys as _real_sys
class _Stdin:
    def __init__(self, text):
        self.lines = [line + '\\n' for line in text.split('\\n')]
        self.lines[-1] = self.lines[-1][:-1]
        self.next = 0
    def readline(self):
        self.next += 1
        return self.lines[self.next - 1] if self.next <= len(self.lines) else ''
    def readlines(self):
        lines = [line for line in self.lines[self.next:] if line]
        self.next = len(self.lines)
        return lines
    def read(self):
        return ''.join(self.readlines())
    def __iter__(self):
        return self
    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line
class _Stdout:
    def write(self, text):
        print(text, end='')
        return len(text)
    def flush(self):
        pass
class _Sys:
    def __init__(self):
        self.stdin, self.stdout, self.stderr = _Stdin(_stdin), _Stdout(), _real_sys.stderr
        self.argv, self.maxsize = ['main.py'], 2 ** 63 - 1
    def setrecursionlimit(self, limit):
        pass
    def exit(self, code=None):
        raise SystemExit if code is None or code == 0 else SystemExit(str(code))
_sys = _Sys()
def input(prompt=''):
    print(prompt, end='')
    line = _sys.stdin.readline()
    if not line:
        raise EOFError('EOF when reading a line')
    return line[:-1] if line.endswith('\\n') else line
exit = quit = _sys.exit
"""
# Messages about what monty lacks, which is no fault of the program
NOT_PYTHON = re.compile(
    r"The monty syntax parser does not|Internal error in monty|'_io.TextIOWrapper' object has no"
)
MISSING = re.compile(r"(?:No module named|cannot import name '\w+' from|module) '(\w+)")
# A message is cut after this text: seconds and bytes follow, which differ from run to run
EXCEEDED = "limit exceeded"


class MontySandbox:
    """Sandbox that runs programs one after the other, in a process that lives until close().

    Attributes:
        said: The last line of the latest program's traceback, or None if it raised nothing.

    Raises:
        SandboxError: If pydantic-monty is not installed.
    """

    name = "pydantic-monty"

    def __init__(self):
        if importlib.util.find_spec("pydantic_monty") is None:
            raise SandboxError("it is not installed; pip install pydantic-monty")
        import pydantic_monty

        self._monty, self.said = pydantic_monty, None
        self._pool = pydantic_monty.Monty(max_processes=1, checkout_timeout=5.0)
        # Entered here and left in close(): one process serves many programs
        self._pool.__enter__()

    def close(self):
        """End the process."""
        self._pool.__exit__(None, None, None)

    def run(self, program: str, stdin: str, seconds: float) -> tuple[str, str | None]:
        """Run a program and return its output.

        Args:
            program: The program's code.
            stdin: The text that it reads from standard input.
            seconds: Limit of its time.

        Returns:
            (output, failure). The failure is None, CRASHED or TIME_LIMIT.

        Raises:
            SandboxError: If monty itself fails, or lacks a part of Python that the program uses.
        """
        output, self.said = self._monty.CollectStreams(max_bytes=MAX_OUTPUT_BYTES), None
        limits = {"max_feed_duration_secs": seconds, "max_memory": MAX_MEMORY_BYTES}
        try:
            with self._pool.checkout(limits=limits, os_policy={"sleep": "zero"}) as session:
                session.feed_run(PRELUDE, inputs={"_stdin": stdin})
                session.feed_run(_with_own_sys(program), print_callback=output)
            failure = None
        except self._monty.MontyCrashedError as error:
            if not error.timed_out:
                raise SandboxError(f"{self.name} crashed: {error}") from None
            failure, self.said = TIME_LIMIT, f"TimeoutError: time {EXCEEDED}"
        except self._monty.MontyError as error:
            failure = self._failure(error)
        return "".join(text for stream, text in output.output if stream == "stdout"), failure

    def _failure(self, error):
        message = str(error)
        # For the code 0 or None, the prelude's exit raises a SystemExit without text
        if message == "SystemExit":
            return None
        text_before, exceeded_text, _ = error.display("type-msg").partition(EXCEEDED)
        self.said = text_before + exceeded_text
        if "feed time limit exceeded" in message:
            return TIME_LIMIT
        missing_match = MISSING.search(message)
        # If a module of the standard library is missing, monty lacks it; any other one is the
        # program's error
        if NOT_PYTHON.search(message) or (
            missing_match and missing_match[1] in sys.stdlib_module_names
        ):
            raise SandboxError(f"{self.name} is not all of Python ({message}); install bubblewrap")
        return CRASHED


def _with_own_sys(program):
    """Return `program` with the prelude's `_sys` in place of the `sys` that it imports."""
    if "sys" not in program:
        return program
    try:
        return ast.unparse(_OwnSys().visit(ast.parse(program)))
    # Not Python, or hostile: monty reports it
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program


class _OwnSys(ast.NodeTransformer):
    def visit_Import(self, node):
        sys_assigns = [_assign(x.asname or "sys", "_sys") for x in node.names if x.name == "sys"]
        other_names = [x for x in node.names if x.name != "sys"]
        return sys_assigns + ([ast.Import(other_names)] if other_names else [])

    def visit_ImportFrom(self, node):
        if node.module != "sys":
            return node
        return [_assign(x.asname or x.name, f"_sys.{x.name}") for x in node.names]


def _assign(name, value):
    return ast.parse(f"{name} = {value}").body[0]
