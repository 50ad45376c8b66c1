"""What JAX is asked to compile inside a block."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """The requests for compilations, with a cache or without, that the block makes: a list that grows."""
    requests = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            requests.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield requests
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
