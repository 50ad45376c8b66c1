"""The programs of launch/ as a shell starts them, but in this process: flags, main, exit status, output."""

import contextlib
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags

from deepseek_jax import recipes
from launch import chat, common, compare, convert, doctor, evaluate, generate, plan, sweep, train

# Each program's module and how it parses a command line, as its last lines have it
PROGRAMS = {
    "train": (train, train.parse_flags),
    "generate": (generate, common.parse_config),
    "chat": (chat, chat.parse_flags),
    "evaluate": (evaluate, evaluate.parse_flags),
    "convert": (convert, convert.parse_flags),
    "compare": (compare, common.parse_flags),
    "plan": (plan, plan.parse_flags),
    "sweep": (sweep, sweep.parse_flags),
    "doctor": (doctor, common.parse_flags),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class End(NamedTuple):
    """How a program ended. status: as a shell sees it; 1 for an error that keeps its traceback."""

    status: int
    out: str
    err: str


def launched(program: str, *arguments: str):
    """Run a program's command line to its end: -> End."""
    module, parse = PROGRAMS[program]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        before = set(flags.FLAGS)
        module.define_flags()
        stack.enter_context(_as_before(set(flags.FLAGS) - before))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            module.main(parse([f"{program}.py", *arguments]))
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    return End(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def plugged(folder: Path):
    """In the block this process is in a folder, and finds the recipes of its folder "plugins" beside ours."""
    more = [*recipes.__path__, str(folder / "plugins")]
    with contextlib.chdir(folder), mock.patch.object(recipes, "__path__", more):
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None)).startswith(f"{folder}{os.sep}"):
                    del sys.modules[name]


@contextlib.contextmanager
def _as_before(defined):
    """Undo what a program leaves in its process: the flags that it defined, environment, signal handlers."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    verbosity = flags.FLAGS["verbosity"].value
    try:
        with mock.patch.dict(os.environ):
            yield
    finally:
        # Those of the program, and not what a library defined when the program imported it
        for name in defined:
            delattr(flags.FLAGS, name)
        flags.FLAGS.verbosity = verbosity
        flags.FLAGS["verbosity"].using_default_value = True
        flags.FLAGS.unparse_flags()
        for number, handler in handlers.items():
            signal.signal(number, handler)
