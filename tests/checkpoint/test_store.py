import json
import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.path import atomicity

from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.training.state import TrainState, state_shardings
from tests import warm

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
    killed = warm.run("-c", KILLED, tmp_path)
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


def test_what_changes_after_a_save_is_saved_as_it_was(tmp_path):
    """Oracle: by hand: the data at the call, though the run changes its own while saving continues."""
    with Store(tmp_path) as store:
        for step in range(1, 6):
            data = {"best": {"a": [step]}}
            store.save(step, {"state": {"x": jnp.full(3, step)}, "data": data})
            data["best"]["a"][0] = data["best"]["b"] = "later"
            assert store.restore(step, {"x": jnp.zeros(3, int)})["data"] == {"best": {"a": [step]}}


def test_a_deletion_that_was_killed_is_finished(tmp_path):
    """Oracle: by hand: the newest two and a multiple of 2 before them; of an older one half was there."""
    half = tmp_path / "half"
    with Store(tmp_path / "store", keep=2, keep_every=2) as store:
        for step in range(1, 6):
            store.save(step, {"state": {"x": jnp.full(3, step)}, "data": {}})
            store.wait()
            if step == 3:
                shutil.copytree(store.folder / "3", half)
    shutil.rmtree(half / "state")
    shutil.move(half, tmp_path / "store" / "3")
    with Store(tmp_path / "store", keep=2, keep_every=2) as store:
        store.finish_deleting()
        assert {path.name for path in store.folder.iterdir()} == {"2", "4", "5"}
        np.testing.assert_array_equal(
            store.restore(None, {"x": jnp.zeros(3, int)})["state"]["x"], 5
        )


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


def flip(path):
    """Another byte in the middle, as a failing disk may give."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def damage_json(folder):
    text = (folder / "data" / "data.json").read_text()
    assert '"next_index":3' in text.replace(" ", "")
    (folder / "data" / "data.json").write_text(text.replace("3", "4", 1))


DAMAGES = {
    "flipped byte": lambda folder: flip(largest(folder / "state" / "ocdbt.process_0")),
    "cut array": lambda folder: os.truncate(largest(folder / "state" / "ocdbt.process_0"), 100),
    "missing array": lambda folder: largest(folder / "state" / "ocdbt.process_0").unlink(),
    "zeroed array": lambda folder: largest(folder / "state").write_bytes(bytes(5000)),
    "missing manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "empty metadata": lambda folder: (folder / "state" / "_METADATA").write_text(""),
    "bad JSON": lambda folder: (folder / "data" / "data.json").write_text('{"source":'),
    "another position": damage_json,
    "missing data": lambda folder: shutil.rmtree(folder / "data"),
    "missing state": lambda folder: shutil.rmtree(folder / "state"),
    "nothing left": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "bad score": lambda folder: (folder / "metrics" / "metrics").write_text(""),
}


def large_state(seed):
    """make_state with an array that fills more than the other files of a checkpoint."""
    state = make_state(seed)
    noise = jax.random.normal(jax.random.key(seed), (64, 64))
    return state.replace(params=state.params | {"noise": noise})


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, capsys, name):
    """Oracle: the state and data of the checkpoint before, bit for bit; the path of the damaged one, which
    is kept under another name; with strict it stays where it is.
    """
    with Store(tmp_path, best_is="lowest") as store:
        for step in (1, 2):
            store.save(step, {"state": large_state(step), "data": {"source": DATA}}, score=1.0)
    DAMAGES[name](tmp_path / "2")
    with pytest.raises(DamagedCheckpoint) as error:
        with Store(tmp_path, best_is="lowest", strict=True) as store:
            store.newest(large_state(0))
    assert str(tmp_path / "2") in str(error.value) and (tmp_path / "2").exists()
    with Store(tmp_path, best_is="lowest") as store:
        step, checkpoint = store.newest(large_state(0))
        assert step == 1 and checkpoint["data"] == {"source": DATA}
        assert_equal(checkpoint["state"], large_state(1))
        said = capsys.readouterr().out
        assert f"{tmp_path / '2'} is damaged" in said and (tmp_path / "2.damaged").is_dir()
        # The step can be saved again
        store.save(2, {"state": large_state(3), "data": {}})
        store.wait()
        assert_equal(store.newest(large_state(0))[1]["state"], large_state(3))


def test_a_folder_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path):
    """Oracle: the words a reader needs."""
    with Store(tmp_path) as store:
        store.save(1, {"state": large_state(1), "data": {}})
    flip(largest(tmp_path / "1" / "state"))
    with (
        Store(tmp_path) as store,
        pytest.raises(DamagedCheckpoint, match="remove it to begin anew"),
    ):
        store.newest(large_state(0))


def test_the_damaged_array_is_named_on_any_mesh(tmp_path):
    """Oracle: the array whose value another save changed; saved on one mesh, compared on two others."""
    state, other = ({"a": jnp.arange(64.0), "b": jnp.arange(64.0) + x} for x in (0.0, 1.0))
    mesh = make_mesh(fsdp=8)
    by_rows = jax.NamedSharding(mesh, jax.P("fsdp"))
    with Store(tmp_path) as store:
        store.save(1, {"state": jax.device_put(state, by_rows), "data": {}})
        store.wait()
        assert_equal(store.restore(1, state)["state"], state)
        store.save(2, {"state": other, "data": {}})
    # The digests of one checkpoint beside the arrays of the other
    shutil.copy(tmp_path / "1" / "data" / "data.json", tmp_path / "2" / "data" / "data.json")
    with Store(tmp_path) as store, pytest.raises(DamagedCheckpoint, match="damaged: b is not what"):
        store.restore(2, jax.device_put(state, by_rows))


def test_a_checkpoint_without_digests_is_refused_and_left_as_it_is(tmp_path):
    """Oracle: the checkpoint's name in the message, and its bytes: it is not set aside as damaged."""
    with Store(tmp_path) as store:
        store.save(1, {"state": make_state(1), "data": DATA})
    (tmp_path / "1" / "data" / "data.json").write_text(json.dumps(DATA))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with Store(tmp_path) as store, pytest.raises(ValueError, match=f"^{tmp_path}/1 has no digests"):
        store.newest(make_state(0))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_save_returns_while_the_checkpoint_is_still_being_written(tmp_path, monkeypatch):
    """Oracle: by hand: the folder gets its name when the test lets it; the state of the call is saved."""
    may_end, end = threading.Event(), atomicity.AtomicRenameTemporaryPath.finalize

    async def later(*args, **kwargs):
        assert may_end.wait(60)
        return await end(*args, **kwargs)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", later)
    with Store(tmp_path) as store:
        store.save(1, {"state": make_state(1), "data": DATA})
        assert not (tmp_path / "1").exists()
        may_end.set()
        store.wait()
        assert (tmp_path / "1").exists()
        assert_equal(store.restore(None, make_state())["state"], make_state(1))
