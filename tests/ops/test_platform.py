"""The machine that a program is for, which may differ from the one that traces it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models import forward
from deepseek_jax.ops import platform as platforms
from deepseek_jax.ops.cpu import dot as cpu_dot
from deepseek_jax.ops.cpu import grouped_matmul as cpu_grouped_matmul
from deepseek_jax.ops.cpu import remat as cpu_remat
from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.platform import platform
from deepseek_jax.rollout import steps
from tests.tiny import tiny_model


def products():
    """The text of grouped_matmul as it is traced now."""

    def f(rows, kernel, sizes):
        return grouped_matmul(rows, kernel, sizes)

    arrays = jnp.ones((8, 2)), jnp.ones((2, 2, 3)), jnp.array([4, 4])
    return lambda: str(jax.make_jaxpr(f)(*arrays))


def test_the_device_that_a_program_is_traced_for_says_what_it_is_made_of():
    """Oracle: by hand: conftest's backend is a CPU; a default device, however it is given, stands before it;
    the grouped product takes its form for TPU there and the one for CPU here.
    """
    traced = products()
    assert platform() == "cpu" and "ragged_dot" not in traced()
    with jax.default_device("tpu"):
        assert platform() == "tpu" and "ragged_dot" in traced()
    with jax.default_device(jax.devices()[1]):
        assert platform() == "cpu" and "ragged_dot" not in traced()
    assert platform() == "cpu"


def trace_everything(kind):
    """Trace a gradient and the prefill of two prompts, anew: no cache of jit's is used."""
    config, params = tiny_model(kind)
    config = dataclasses.replace(config, remat="selective", dtype="bfloat16")
    tokens, lengths = np.ones((2, 8), np.int32), np.full(2, 8, np.int32)
    jax.clear_caches()
    jax.eval_shape(jax.grad(lambda p: forward(config, p, tokens).sum()), params)
    weights = jax.eval_shape(lambda p: steps.decoding_weights(config, p), params)
    tables = jax.eval_shape(lambda: steps.rotations(config, 16))
    jax.eval_shape(lambda w, t: steps.prefill(config, w, t, tokens, lengths), weights, tables)


@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
def test_no_form_of_the_cpu_is_in_a_program_for_another_machine(kind, monkeypatch):
    """Oracle: every function of ops/cpu raises when it is traced; on the CPU one of them is traced."""

    def refuse(*_, **__):
        raise AssertionError("a form of the CPU was traced")

    for module in (cpu_dot, cpu_grouped_matmul, cpu_remat):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(cpu_dot.InputsLast, "of", refuse)
    monkeypatch.setattr(cpu_remat, "save_bits", refuse)
    for machine in ("tpu", "gpu"):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(platforms, "platform", lambda machine=machine: machine)
            trace_everything(kind)
    with pytest.raises(AssertionError, match="a form of the CPU was traced"):
        trace_everything(kind)
    jax.clear_caches()
