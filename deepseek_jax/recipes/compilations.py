"""Announce each long compilation of a run, by the name of the function that XLA compiles."""

import contextlib
import logging
import threading
from collections.abc import Iterator

import jax
from typing_extensions import override

from deepseek_jax import progress

# JAX has no public hook before a compilation. This logger names the function then, at level DEBUG
LOGGER, MESSAGE = "jax._src.interpreters.pxla", "Compiling %s"
ENDED = "/jax/core/compile/backend_compile_duration"
# A compilation is announced after this many times progress.SOON_SECONDS: a run has dozens of small ones
PATIENCE = 4
# Names that do not say what a function computes
NAMES = {
    "train_step": "the update",
    "prefill": "the reading of prompts",
    "decode": "the sampling of tokens",
    "jaxpr_as_fun": "random parameters",
    "create": "the optimizer's state",
    "fingerprint": "the fingerprint of parameters",
}


class _Compilations(logging.Filter):
    """A Wait for the compilation under way in each thread."""

    def __init__(self):
        super().__init__()
        self._waits: dict[int, progress.Wait] = {}

    @override
    def filter(self, record):
        if str(record.msg).startswith(MESSAGE) and isinstance(record.args, tuple):
            self.end()
            function = str(record.args[0]).removeprefix("jit(").removesuffix(")").strip("_")
            wait = progress.Wait(
                f"compiling {NAMES.get(function, function)}", soon=PATIENCE * progress.SOON_SECONDS
            )
            self._waits[threading.get_ident()] = wait
            wait.begin()
        # Lines at this level are for us only
        return record.levelno > logging.DEBUG

    def end(self):
        """End the Wait of this thread."""
        wait = self._waits.pop(threading.get_ident(), None)
        if wait is not None:
            wait.end()

    def ended(self, event: str, duration_secs: float, **kwargs: str | int):
        """End it at the event of JAX that ends a compilation."""
        if event == ENDED:
            self.end()


@contextlib.contextmanager
def announced_compilations() -> Iterator[None]:
    """Announce the compilations of the block, and remind of them, as progress.waiting_for does."""
    logger, compilations = logging.getLogger(LOGGER), _Compilations()
    level = logger.level
    logger.addFilter(compilations)
    logger.setLevel(logging.DEBUG)
    jax.monitoring.register_event_duration_secs_listener(compilations.ended)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(compilations.ended)
        logger.setLevel(level)
        logger.removeFilter(compilations)
