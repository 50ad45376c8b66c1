"""Mistakes in a notebook, shown as one message, as on the command line."""

import contextlib
from collections.abc import Iterator

from deepseek_jax.errors import Fault, shortened
from deepseek_jax.programs import is_mistake


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Make IPython show a user's mistake or a Fault of the body as a message without traceback."""
    try:
        yield
    except (ValueError, Fault) as error:
        if isinstance(error, Fault) or is_mistake(error):
            lines = [f"{type(error).__name__}: {shortened(str(error))}"]
            # IPython calls this method of an error, if there is one, to show it
            vars(error)["_render_traceback_"] = lambda: lines
        raise
