import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.parallel.shard import on_device
from deepseek_jax.training.loop import fit
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.optimizer import OptimizerSettings, make_optimizer
from deepseek_jax.training.run import Run
from deepseek_jax.training.schedule import make_schedule
from deepseek_jax.training.settings import FitSettings
from deepseek_jax.training.state import TrainState, in_memory, state_shardings


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
    assert (
        kernels == [P(("fsdp", "context"), ("tensor", "expert"))] * 3
    )  # parameter, mean, variance
    assert {spec for path, spec in specs.items() if "step" in path or "count" in path} == {P()}


def test_create_starts_at_step_zero_with_the_parameters_given():
    """Oracle: the arguments."""
    params = {"kernel": jnp.arange(3.0)}
    schedule = make_schedule(0.1, num_steps=2)
    tx = make_optimizer(schedule, b1=0.9, b2=0.9, weight_decay=0.0, max_grad_norm=1.0)
    state = TrainState.create(params, tx)
    assert state.step == 0 and state.step.dtype == jnp.int32
    np.testing.assert_array_equal(state.params["kernel"], [0, 1, 2])


class Rows:
    """The loop's source of eight rows a step, by its number alone."""

    def __init__(self, place):
        self.place = place

    def next(self, state, step):
        rows = np.random.default_rng(step).normal(size=(8, 8)).astype(np.float32)
        return [{"rows": jax.device_put(rows, self.place)}], {}

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def loss_fn(params, batch, rng):
    return ((batch["rows"] @ params["kernel"] - 1) ** 2).mean(), {}


def fitted(workdir, memory, num_steps=3, should_stop=lambda: False):
    """The parameters after updates whose moments wait in this memory, and the (kind of memory, shape) of each
    moment, where every update got them.
    """
    mesh, seen = make_mesh(data=1, fsdp=4, tensor=2), []
    rows, kernel = (NamedSharding(mesh, P(*spec)) for spec in (("fsdp",), ("fsdp", "tensor")))
    source = Rows(rows)
    optimizer = OptimizerSettings(learning_rate=0.1, moment_memory=memory)
    settings = FitSettings(num_steps=num_steps, optimizer=optimizer, save_every=1, log_every=1)
    taken = source.next

    def recording(state, step):
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        seen.extend((leaf.sharding.memory_kind, leaf.sharding.spec) for leaf in moments)
        return taken(state, step)

    source.next = recording
    run = Run(mesh, workdir / "checkpoints", MetricsWriter(workdir), should_stop, "fit")
    params = {"kernel": jax.device_put(jnp.full((8, 4), 0.5), kernel)}
    return fit(settings, loss_fn, params, source, run)["kernel"], seen


@pytest.mark.parametrize("memory, kind", [("device", "device"), ("host", "pinned_host")])
def test_moments_wait_in_the_memory_that_the_config_says(tmp_path, memory, kind):
    """Oracle: the kind of memory of the moments that each update gets, two of them, in the place of their
    parameter, also after the run was stopped and read its checkpoint.
    """
    with pytest.raises(SystemExit):
        fitted(tmp_path, memory, should_stop=lambda: True)
    _, seen = fitted(tmp_path, memory)
    assert seen == [(kind, P("fsdp", "tensor"))] * 2 * 2  # of the second and third update


def test_the_memory_of_the_moments_changes_no_bit(tmp_path):
    """Oracle: the run whose moments stay on the device, without and with an interruption."""
    device, _ = fitted(tmp_path / "device", "device")
    host, _ = fitted(tmp_path / "host", "host")
    with pytest.raises(SystemExit):
        fitted(tmp_path / "stopped", "host", should_stop=lambda: True)
    resumed, _ = fitted(tmp_path / "stopped", "host")
    assert np.abs(np.asarray(device) - 0.5).min() > 0.01
    np.testing.assert_array_equal(host, device)
    np.testing.assert_array_equal(resumed, device)
    assert host.sharding.memory_kind == "device"


def test_only_what_waits_on_the_host_is_moved():
    """Oracle: by hand: the kinds of memory before and after, inside of jit and outside; the numbers stay."""
    mesh = make_mesh(data=1, fsdp=8)
    place = NamedSharding(mesh, P("fsdp"))
    assert in_memory(place, "device") is place
    tree = {
        "a": jax.device_put(jnp.arange(8.0), place),
        "b": jax.device_put(jnp.arange(8.0) + 1, in_memory(place, "host")),
    }
    assert tree["b"].sharding.memory_kind == "pinned_host"
    for moved in (on_device(tree), jax.jit(on_device)(tree)):
        assert {leaf.sharding.memory_kind for leaf in moved.values()} == {"device"}
        assert moved["b"].sharding.is_equivalent_to(place, 1)
        np.testing.assert_array_equal(moved["b"], np.arange(8) + 1)
    assert on_device(tree)["a"] is tree["a"]
