"""Parameters in an Orbax folder: exact, on any mesh, complete or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.checkpoint import arrays, is_orbax, load_orbax, save_orbax
from deepseek_jax.checkpoint.tree import abstract_params, by_path, from_paths
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.parallel import make_mesh
from tests.processes import run_two

CONFIG = ModelConfig(**models.deepseek_v3_tiny())
MESH = dict(fsdp=2, expert=2, tensor=2)

ONE_OF_TWO = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.parallel import make_mesh
from deepseek_jax.models import random_params
from tests.checkpoint.test_orbax_params import CONFIG, MESH

folder = Path(sys.argv[3]) / "runs" / "out"
save_orbax(folder, CONFIG, random_params(CONFIG, make_mesh(**MESH), 0))
assert is_orbax(folder) and (folder / "config.json").is_file()
"""


@pytest.fixture
def params():
    """Distinct numbers, bfloat16 but for the router's bias."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = jnp.float32 if path.endswith("router_bias") else jnp.bfloat16
        return jnp.asarray(rng.standard_normal(leaf.shape), kind)

    return from_paths({path: draw(path, leaf) for path, leaf in abstract_params(CONFIG).items()})


@pytest.mark.parametrize("mesh", [None, MESH])
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


@pytest.mark.slow
def test_two_processes_write_one_folder(tmp_path):
    """Oracle: the same parameters, made by one process; no other folder is left beside it."""
    codes, outputs = run_two(
        ONE_OF_TWO, tmp_path, xla_flags="--xla_force_host_platform_device_count=4"
    )
    assert codes == [0, 0], outputs
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["out"]
    _, read = load_orbax(tmp_path / "runs" / "out")
    made = random_params(CONFIG, make_mesh(**MESH), 0)
    jax.tree.map(np.testing.assert_array_equal, read, made)


ONE_READER = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.parallel import make_mesh

def bytes_read():
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])

mesh = make_mesh(fsdp=2, expert=4)
before = bytes_read()
jax.block_until_ready(load_orbax(sys.argv[3], mesh=mesh))
print("read", bytes_read() - before)
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_about_its_share(tmp_path, monkeypatch):
    """Oracle: the size of the files of a folder that a single device wrote, and what the system counts for a
    process that holds half of nearly every array: at most six tenths.
    """
    sizes = dict(hidden_size=512, moe_intermediate_size=512, n_routed_experts=32)
    config = ModelConfig(**models.deepseek_v3_tiny() | sizes)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 2**20)
    save_orbax(
        tmp_path / "out", config, random_params(config, make_mesh(devices=jax.devices()[:1]), 0)
    )
    whole = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    codes, outputs = run_two(
        ONE_READER, tmp_path / "out", xla_flags="--xla_force_host_platform_device_count=4"
    )
    assert codes == [0, 0], outputs
    shares = [int(output.split("read ")[1].split()[0]) / whole for output in outputs]
    assert whole > 50e6 and all(0.4 < share < 0.6 for share in shares), (whole, shares)


def test_nothing_is_left_when_writing_fails(params, tmp_path, monkeypatch):
    """Oracle: an empty parent folder after the disk fills up once the parameters are written."""
    real = arrays.ocp.save

    def full_disk(path, tree, **more):
        real(path, tree, **more)
        assert any(tmp_path.rglob("params"))
        raise OSError("No space left on device")

    monkeypatch.setattr(arrays.ocp, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_orbax(tmp_path / "out", CONFIG, params)
    assert list(tmp_path.iterdir()) == []


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
