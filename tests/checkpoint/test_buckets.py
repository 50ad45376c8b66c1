"""Checkpoints in a bucket: what is read there is what was written, by Orbax, safetensors and GGUF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.checkpoint import (
    is_adapter,
    is_orbax,
    load_adapter,
    load_hf,
    load_orbax,
    load_params,
    orbax_params,
    save_adapter,
    save_hf,
    save_orbax,
)
from deepseek_jax.checkpoint.folder import UNFINISHED, fingerprint, is_whole
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.files import as_path, upload
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.parallel import make_mesh
from tests.checkpoint.test_gguf import write_gguf
from tests.checkpoint.test_store import DATA, assert_equal, make_state
from tests.models.families import write_tiny_checkpoint
from tests.recipes.small import one_device

CONFIG = ModelConfig(**models.deepseek_v3_tiny())


@pytest.fixture
def place(bucket):
    """An empty folder of a bucket."""
    bucket.objects.clear()
    return as_path(bucket.folder) / "run"


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, one_device(), 0)


def test_a_store_saves_and_restores_in_a_bucket(place):
    """Oracle: as of a folder: the state and the data before, bit for bit, the newest two of three saves."""
    with Store(place / "checkpoints", keep=2) as store:
        assert store.latest_step() is None
        for step in (1, 2, 3):
            store.save(step, {"state": make_state(step), "data": DATA | {"step": step}})
    with Store(place / "checkpoints") as store:
        assert store.latest_step() == 3
        checkpoint = store.restore(None, make_state())
        assert_equal(store.restore(2, make_state())["state"], make_state(2))
        with pytest.raises(
            ValueError, match=rf"{place}.* no checkpoint of step 1; it has \[2, 3\]"
        ):
            store.restore(1, make_state())
    assert_equal(checkpoint["state"], make_state(3))
    assert checkpoint["data"] == DATA | {"step": 3}


def test_a_checkpoint_in_a_bucket_without_its_last_object_is_not_read(place, bucket):
    """Oracle: the step before; a killed process has not written the object that ends a checkpoint."""
    with Store(place) as store:
        for step in (1, 2):
            store.save(step, {"state": make_state(step), "data": {}})
    del bucket.objects["run/2/commit_success.txt"]
    with Store(place) as store:
        assert store.latest_step() == 1
        store.save(2, {"state": make_state(5), "data": {}})
        assert_equal(store.restore(2, make_state())["state"], make_state(5))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, dict(fsdp=2, expert=2, tensor=2)])
def test_parameters_come_back_exactly_from_a_bucket(params, place, mesh):
    """Oracle: what was saved; through load_params too, which finds out what is there."""
    save_orbax(place / "params", CONFIG, params)
    config, read = load_params(str(place / "params"), mesh=mesh and make_mesh(**mesh))
    assert config.n_routed_experts == CONFIG.n_routed_experts and is_whole(place / "params")
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(ValueError, match=f"{place}/params is not empty"):
        save_orbax(place / "params", CONFIG, params)


@pytest.mark.slow
def test_parameters_whose_saving_was_cut_short_do_not_count_and_are_replaced(
    params, place, monkeypatch
):
    """Oracle: the parameters after it: of a process that was killed before config.json, which cleans nothing
    up, and of one whose saving raised, which does.
    """

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(orbax_params, "first_process", killed)
        save_orbax(place / "params", CONFIG, params)
    assert not place.exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(orbax_params, "first_process", killed)
        patch.setattr("deepseek_jax.checkpoint.folder.remove_folder", lambda folder: None)
        save_orbax(place / "params", CONFIG, params)
    assert (place / "params" / UNFINISHED).exists()
    assert not is_orbax(place / "params") and not is_whole(place / "params")
    with pytest.raises(ValueError, match=f"{place}/params is not complete"):
        load_hf(place / "params")
    save_orbax(place / "params", CONFIG, params)
    assert is_orbax(place / "params") and not (place / "params" / UNFINISHED).exists()
    jax.tree.map(np.testing.assert_array_equal, load_orbax(place / "params")[1], params)


@pytest.mark.slow
def test_hugging_face_folders_and_adapters_are_read_and_written_in_a_bucket(place, tmp_path):
    """Oracle: the same files in a folder: tensors, side files, logits of the adapter's arrays."""
    write_tiny_checkpoint("qwen3", tmp_path / "theirs")
    upload(tmp_path / "theirs", place / "theirs")
    config, params = load_hf(tmp_path / "theirs", mesh=one_device())
    remote = load_hf(place / "theirs", mesh=one_device())[1]
    jax.tree.map(np.testing.assert_array_equal, remote, params)
    save_hf(tmp_path / "ours", config, params, like=tmp_path / "theirs")
    save_hf(place / "ours", config, params, like=place / "theirs")
    for path in (tmp_path / "ours").iterdir():
        assert (place / "ours" / path.name).read_bytes() == path.read_bytes(), path
    assert fingerprint(place / "ours") == fingerprint(tmp_path / "ours")
    settings = AdapterSettings(rank=2, alpha=4)
    adapted = with_adapter(config, params, settings, one_device(), seed=0)
    save_adapter(place / "adapter", config, adapted, place / "theirs")
    assert is_adapter(place / "adapter")
    read = load_adapter(place / "adapter", config, params, one_device())
    jax.tree.map(np.testing.assert_array_equal, read.adapter, adapted.adapter)


@pytest.mark.slow
def test_a_gguf_file_is_read_from_a_bucket(place, tmp_path):
    """Oracle: the parameters that were written."""
    config = ModelConfig(**models.llama_tiny(), bos_token_id=0, eos_token_id=1)
    params = random_params(config, one_device(), 0)
    write_gguf(tmp_path / "tiny.gguf", config, params)
    upload(tmp_path, place)
    read = load_params(place / "tiny.gguf")[1]
    for path, leaf in by_path(params).items():
        np.testing.assert_array_equal(by_path(read)[path], leaf.astype(jnp.float32), err_msg=path)
