import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.schedule import make_schedule
from deepseek_jax.training.state import TrainState, state_shardings


def test_moments_lie_where_their_parameters_do():
    """Oracle: the parameters' own shardings, leaf by leaf; counters on every device."""
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    params = {"kernel": jnp.ones((8, 4)), "router_bias": jnp.ones(4)}
    placed = shardings(mesh, {"kernel": ("embed", "mlp"), "router_bias": ("experts",)}, params)
    schedule = make_schedule(0.1, num_steps=2)
    tx = make_optimizer(schedule, b1=0.9, b2=0.9, weight_decay=0.0, max_grad_norm=1.0)
    wanted = state_shardings(mesh, placed, params, tx)
    state = jax.jit(lambda p: TrainState.create(p, tx), out_shardings=wanted)(params)

    specs = {
        jax.tree_util.keystr(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    kernels = [spec for path, spec in specs.items() if "kernel" in path]
    assert kernels == [P(("fsdp", "context"), "tensor")] * 3  # parameter, mean, variance
    assert {spec for path, spec in specs.items() if "step" in path or "count" in path} == {P()}


def test_create_starts_at_step_zero_with_the_parameters_given():
    """Oracle: the arguments."""
    params = {"kernel": jnp.arange(3.0)}
    schedule = make_schedule(0.1, num_steps=2)
    tx = make_optimizer(schedule, b1=0.9, b2=0.9, weight_decay=0.0, max_grad_norm=1.0)
    state = TrainState.create(params, tx)
    assert state.step == 0 and state.step.dtype == jnp.int32
    np.testing.assert_array_equal(state.params["kernel"], [0, 1, 2])
