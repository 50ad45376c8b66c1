"""A mistake in a notebook is one message there, as on the command line."""

import contextlib

from deepseek_jax.errors import Fault, shortened
from deepseek_jax.programs import is_mistake


@contextlib.contextmanager
def plainly():
    """Have IPython show a mistake or a fault that the body raises by its message, without a traceback."""
    try:
        yield
    except (ValueError, Fault) as error:
        if isinstance(error, Fault) or is_mistake(error):
            lines = [f"{type(error).__name__}: {shortened(str(error))}"]
            # What IPython calls for an error that shows itself
            error._render_traceback_ = lambda: lines
        raise
