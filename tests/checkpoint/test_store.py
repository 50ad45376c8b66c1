import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.training.state import TrainState, state_shardings

TX = optax.adam(0.1)
DATA = {"source": {"next_index": 3, "order": [1, "a", None, 2.5], "empty": {}}, "flag": True}


def make_params():
    kernel = jnp.arange(32.0).reshape(8, 4) / 7
    return {"kernel": kernel, "scale": jnp.ones(4, jnp.bfloat16)}


def make_state(seed=0):
    state = TrainState.create(make_params(), TX)
    return jax.tree.map(lambda x: (x + seed).astype(x.dtype), state)


def assert_equal(tree, wanted):
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, tree, wanted)
    assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, wanted)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    """Oracle: the state and the data before; a second Store, as another process would open it."""
    with Store(tmp_path) as store:
        assert store.latest_step() is None
        store.save(5, {"state": make_state(), "data": DATA})
    with Store(tmp_path) as store:
        assert store.latest_step() == 5
        checkpoint = store.restore(None, make_state(seed=1))
    assert_equal(checkpoint["state"], make_state())
    assert checkpoint["data"] == DATA


def test_the_newest_checkpoints_stay_and_each_can_be_asked_for(tmp_path):
    """Oracle: the last two of three saves."""
    with Store(tmp_path, keep=2) as store:
        for step in (1, 2, 3):
            store.save(step, {"state": make_state(step), "data": {"step": step}})
        checkpoint = store.restore(2, make_state())
        assert checkpoint["data"] == {"step": 2}
        assert_equal(checkpoint["state"], make_state(2))
        with pytest.raises(ValueError, match=r"holds no checkpoint of step 1; it has \[2, 3\]"):
            store.restore(1, make_state())


def test_arrays_may_be_donated_while_they_are_saved(tmp_path):
    """Oracle: the state as it was when save was called, though its buffers were reused at once."""
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (512, *x.shape)).copy(), make_state())
    wanted = jax.device_get(state)
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    update(jax.tree.map(jnp.copy, state))  # compiles
    with Store(tmp_path) as store:
        store.save(1, {"state": state, "data": {}})
        for _ in range(3):
            state = update(state)
        assert_equal(store.restore(1, state)["state"], wanted)


@pytest.mark.parametrize("sizes", [dict(data=1, fsdp=2, tensor=4), dict(data=8), dict(fsdp=4)])
def test_a_checkpoint_restores_onto_another_mesh(tmp_path, sizes):
    """Oracle: the arrays before; the shardings asked for."""

    def place(**sizes):
        mesh, params = make_mesh(**sizes), make_params()
        axes = {"kernel": ("embed", "mlp"), "scale": ("mlp",)}
        return state_shardings(mesh, shardings(mesh, axes, params), params, TX)

    saved = jax.device_put(make_state(), place(data=1, fsdp=8))
    wanted = place(**sizes)
    with Store(tmp_path) as store:
        store.save(1, {"state": saved, "data": {}})
        state = store.restore(1, jax.device_put(make_state(seed=1), wanted))["state"]
    assert_equal(state, make_state())
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)
    assert all(jax.tree.leaves(same))


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from deepseek_jax.checkpoint.store import Store
store = Store(sys.argv[1])
store.save(1, {"state": {"x": jnp.ones(3)}, "data": {"step": 1}})
store.wait()
store.save(2, {"state": {"x": jnp.arange(5e6)}, "data": {"step": 2}})
while not any(name.startswith("2") for name in os.listdir(sys.argv[1])):
    pass  # the thread that writes has not begun
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_save_that_was_killed_is_never_read_and_can_be_repeated(tmp_path):
    """Oracle: the checkpoint before the kill; then the one that replaces the broken one."""
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert "2" not in left and any(name.startswith("2.") for name in left), left  # half-written
    with Store(tmp_path) as store:
        assert store.latest_step() == 1
        checkpoint = store.restore(None, {"x": jnp.zeros(3)})
        assert checkpoint["data"] == {"step": 1}
        np.testing.assert_array_equal(checkpoint["state"]["x"], 1)
        store.save(2, {"state": {"x": jnp.full(3, 2.0)}, "data": {"step": 2}})
        np.testing.assert_array_equal(store.restore(None, {"x": jnp.zeros(3)})["state"]["x"], 2)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.replace(params=s.params | {"kernel": jnp.ones((8, 5))}),
            r"params/kernel is float32\[8, 4\] there and float32\[8, 5\] here",
        ),
        (
            lambda s: s.replace(params=s.params | {"scale": jnp.ones(4)}),
            r"params/scale is bfloat16\[4\] there and float32\[4\] here",
        ),
        (
            lambda s: s.replace(params=s.params | {"head": jnp.ones(4)}),
            r"params/head is missing there and float32\[4\] here",
        ),
        (
            lambda s: s.replace(params={"scale": s.params["scale"]}),
            r"params/kernel is float32\[8, 4\] there and missing here",
        ),
    ],
)
def test_a_state_of_another_shape_names_the_first_difference_and_the_folder(
    tmp_path, change, message
):
    """Oracle: the one leaf that was changed."""
    with Store(tmp_path) as store:
        store.save(1, {"state": make_state(), "data": {}})
        with pytest.raises(ValueError, match=message) as error:
            store.restore(None, change(make_state()))
    assert str(tmp_path) in str(error.value) and "work directory" in str(error.value)


def test_a_restore_from_an_empty_folder_is_refused(tmp_path):
    """Oracle: nothing was saved."""
    with Store(tmp_path) as store, pytest.raises(ValueError, match="holds no checkpoint"):
        store.restore(None, make_state())


def test_a_step_that_is_not_new_is_refused(tmp_path):
    """Oracle: the checkpoint before, untouched."""
    with Store(tmp_path) as store:
        store.save(2, {"state": make_state(), "data": {}})
        for step in (1, 2):
            with pytest.raises(ValueError, match=f"already holds step 2; cannot save step {step}"):
                store.save(step, {"state": make_state(1), "data": {}})
        assert_equal(store.restore(None, make_state())["state"], make_state())
