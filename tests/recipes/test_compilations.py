"""A line for each long compilation of a run."""

import logging

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax import progress
from deepseek_jax.recipes import compilations
from deepseek_jax.recipes.compilations import LOGGER, announced_compilations


@pytest.fixture
def quick(monkeypatch):
    """All compilations are announced, and the process speaks."""
    monkeypatch.setattr(progress, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(progress, "_hushed", False)


def slow(number):
    """A jitted function that no cache has, and that XLA compiles for a tenth of a second at least."""

    def train_step(x):
        for i in range(60):
            x = jnp.sort(jnp.sin(x * (i + number)))
        return x

    return jax.jit(train_step)


def test_a_compilation_is_announced_by_its_function_and_a_second_call_is_not(quick, capsys):
    """Oracle: by hand: one line; none for the compiled function, and none after the block. The logger of JAX
    is as it was.
    """
    logger, x = logging.getLogger(LOGGER), jnp.arange(4.0)
    before = logger.level, logger.filters[:]
    function = slow(0.123)
    with progress.speaking(), progress.waiting_for("the run", soon=60), announced_compilations():
        function(x)
        assert [wait.what for wait in progress._waits] == ["the run"]
        lines = capsys.readouterr().out.splitlines()
        assert lines.count(f"compiling {compilations.NAMES['train_step']}") == 1
        function(x)
    slow(0.456)(x)
    assert "the update" not in capsys.readouterr().out
    assert (logger.level, logger.filters) == before


def test_a_compilation_that_fails_leaves_no_wait(quick):
    """Oracle: by hand: an option that XLA refuses; the wait ends with the one around it."""
    refused = jax.jit(lambda x: x + 1, compiler_options={"xla_has_no_such_option": "1"})
    with progress.speaking(), announced_compilations():
        with progress.waiting_for("the run", soon=60):
            with pytest.raises(jax.errors.JaxRuntimeError, match="xla_has_no_such_option"):
                refused(1.0)
        assert not progress._waits
