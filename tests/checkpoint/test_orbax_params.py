"""Parameters in an Orbax folder: exact, on any mesh, whole or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.checkpoint import is_orbax, load_orbax, save_orbax
from deepseek_jax.checkpoint.tree import abstract_params, by_path, from_paths
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel import make_mesh

CONFIG = ModelConfig(**models.deepseek_v3_tiny())


@pytest.fixture
def params():
    """Distinct numbers, bfloat16 but for the router's bias."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = jnp.float32 if path.endswith("router_bias") else jnp.bfloat16
        return jnp.asarray(rng.standard_normal(leaf.shape), kind)

    return from_paths({path: draw(path, leaf) for path, leaf in abstract_params(CONFIG).items()})


@pytest.mark.parametrize("mesh", [None, dict(fsdp=2, expert=2, tensor=2)])
def test_parameters_come_back_exactly(params, tmp_path, mesh):
    """Oracle: what was saved, dtypes included; on a mesh, by the sharding rules."""
    save_orbax(tmp_path / "out", CONFIG, params)
    config, read = load_orbax(tmp_path / "out", mesh=mesh and make_mesh(**mesh))
    assert config.dtype == "bfloat16" and config.n_routed_experts == CONFIG.n_routed_experts
    for path, leaf in by_path(read).items():
        assert leaf.dtype == by_path(params)[path].dtype
        np.testing.assert_array_equal(leaf, by_path(params)[path], err_msg=path)
    shards = read["moe_layers"]["ffn"]["gate_up"].addressable_shards
    assert len(shards) == (8 if mesh else 1)


def test_dtype_is_as_asked_but_for_the_router_bias(params, tmp_path):
    """Oracle: by hand."""
    save_orbax(tmp_path / "out", CONFIG, jax.tree.map(lambda leaf: leaf.astype("float32"), params))
    config, read = load_orbax(tmp_path / "out", dtype="bfloat16")
    assert config.dtype == "bfloat16"
    for path, leaf in by_path(read).items():
        assert leaf.dtype == (jnp.float32 if path.endswith("router_bias") else jnp.bfloat16)


def test_only_what_it_wrote_is_orbax(params, tmp_path):
    """Oracle: by hand: the folder, its parent, a folder that is not there."""
    save_orbax(tmp_path / "out", CONFIG, params)
    assert is_orbax(tmp_path / "out")
    assert not is_orbax(tmp_path) and not is_orbax(tmp_path / "other")


def test_a_folder_with_something_in_it_is_left_alone(params, tmp_path):
    """Oracle: its contents before."""
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        save_orbax(tmp_path, CONFIG, params)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_parameters_of_another_config_are_an_error(params, tmp_path):
    """Oracle: the path that differs; nothing is written."""
    del params["head"]
    with pytest.raises(ValueError, match="parameter head is missing in params"):
        save_orbax(tmp_path / "out", CONFIG, params)
    assert list(tmp_path.iterdir()) == []
