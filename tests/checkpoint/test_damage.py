"""Damaged folders of parameters, reward models and adapters: named, with their arrays, on any mesh and in any
dtype; and folders without digests.
"""

import itertools
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint import load_adapter, load_orbax, load_params, save_adapter, save_orbax
from deepseek_jax.checkpoint.arrays import StoredArrays, save_arrays
from deepseek_jax.checkpoint.damage import DamagedCheckpoint, check_digests, read_together
from deepseek_jax.checkpoint.reward_params import load_reward_model, save_reward_model
from deepseek_jax.checkpoint.tree import by_path, from_paths
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.models.reward import reward_config, reward_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from tests.checkpoint.test_store import flip, largest
from tests.processes import run_two
from tests.recipes.small import one_device
from tests.tiny import tiny_model

MESHES = {"one device": None, "mesh": dict(fsdp=2, tensor=2, data=2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(ModelConfig, params, their folder)."""
    config, params = tiny_model("gqa")
    folder = tmp_path_factory.mktemp("saved") / "it"
    save_orbax(folder, config, params)
    return config, params, folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(saved[2], tmp_path / "it")


def arrays_of(folder):
    """The file with the most arrays."""
    return largest(folder / "params" / "state" / "ocdbt.process_0")


def test_too_little_memory_is_no_damage():
    """Oracle: the error itself; of an unreadable file the words a reader needs."""

    def fail(error):
        raise error

    with pytest.raises(MemoryError, match="of the host"):
        read_together("it", lambda: fail(MemoryError("of the host")))
    with pytest.raises(
        DamagedCheckpoint, match="^it is damaged: process 0 cannot read it .EOFError"
    ):
        read_together("it", lambda: fail(EOFError("at 7")))


@pytest.mark.parametrize("lacking", ["arrays", "digests"])
def test_a_part_that_only_one_side_has_is_damage(lacking):
    """Oracle: by hand: of two parts one is missing, among the arrays or among their digests."""
    both, one = {"a": 1, "b": 2}, {"a": 1}
    check_digests("it", both, both)
    sides = (one, both) if lacking == "arrays" else (both, one)
    with pytest.raises(
        DamagedCheckpoint, match="^it is damaged: b is not what was saved; of its 2 parts 1 "
    ):
        check_digests("it", *sides)


def what_changed(folder, params):
    """The names of arrays that Orbax itself reads otherwise than they were saved."""
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    read = by_path(ocp.load(folder / "params", wanted))
    same = {name: np.array_equal(read[name], leaf) for name, leaf in by_path(params).items()}
    return [name for name in sorted(same) if not same[name]]


DAMAGES = {
    "cut": lambda folder: os.truncate(arrays_of(folder), 100),
    "missing": lambda folder: arrays_of(folder).unlink(),
    "zeroed": lambda folder: arrays_of(folder).write_bytes(bytes(5000)),
    "missing manifest": lambda folder: (folder / "params/state/manifest.ocdbt").unlink(),
    "empty list of arrays": lambda folder: (folder / "params/state/_METADATA").write_text(""),
    "missing list of arrays": lambda folder: (folder / "params/state/_METADATA").unlink(),
    "empty metadata": lambda folder: (folder / "params/_CHECKPOINT_METADATA").write_text(""),
    "missing metadata": lambda folder: (folder / "params/_CHECKPOINT_METADATA").unlink(),
    "no arrays": lambda folder: shutil.rmtree(folder / "params/state"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_that_cannot_be_read_are_named_with_a_remedy(saved, copied, name):
    """Oracle: by hand: the folder, what to do, and an array of the file that is not there as it was."""
    DAMAGES[name](copied)
    with pytest.raises(DamagedCheckpoint) as error:
        load_params(copied)
    message = str(error.value)
    assert message.startswith(f"{copied / 'params'} is damaged: ")
    assert message.endswith("; put back a copy, or remove it and make it anew")
    if name in ("cut", "missing", "zeroed"):
        assert any(f"cannot read {array} (" in message for array in by_path(saved[1])), message


def test_a_flipped_byte_names_its_array(saved, copied):
    """Oracle: the array that Orbax, which says nothing, reads otherwise than it was saved."""
    flip(arrays_of(copied))
    (changed,) = what_changed(copied, saved[1])
    with pytest.raises(
        DamagedCheckpoint, match=f"damaged: {changed} is not what was saved; of its"
    ):
        load_orbax(copied)


def with_digests_of(folder, other):
    """Put the digests of another folder beside the arrays of this one."""
    name = "params/_CHECKPOINT_METADATA"
    shutil.copy(other / name, folder / name)
    return folder


KINDS = ("float32", "bfloat16")
# stored, read in, on: the others run with the slow ones
FIRST = ("float32", "bfloat16", "mesh"), ("bfloat16", "float32", "one device")
WAYS = [
    pytest.param(*way, marks=() if way in FIRST else pytest.mark.slow)
    for way in itertools.product(KINDS, KINDS, MESHES)
]


@pytest.mark.parametrize("stored, dtype, mesh", WAYS)
def test_the_damaged_array_is_named_on_any_mesh_and_in_any_dtype(
    saved, tmp_path, stored, dtype, mesh
):
    """Oracle: the array, of all, in which one number differs; the parameters before, rounded by ml_dtypes."""
    config, params, _ = saved
    params = jax.tree.map(lambda leaf: leaf.astype(stored), params)
    down = params["dense_layers"]["ffn"]["down"]
    other = by_path(params) | {"dense_layers/ffn/down": down.at[1, 2, 3].add(0.5)}
    save_orbax(tmp_path / "it", config, params)
    save_orbax(tmp_path / "other", config, from_paths(other))
    on = MESHES[mesh] and make_mesh(**MESHES[mesh])
    read = by_path(load_orbax(tmp_path / "it", dtype=dtype, mesh=on)[1])
    for name, leaf in by_path(params).items():
        wanted = np.asarray(leaf).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        np.testing.assert_array_equal(read[name], wanted, err_msg=name)
    damaged = with_digests_of(tmp_path / "other", tmp_path / "it")
    with pytest.raises(DamagedCheckpoint, match="damaged: dense_layers/ffn/down is not what was"):
        load_orbax(damaged, dtype=dtype, mesh=on)


def test_what_rounding_removes_is_no_damage(saved, tmp_path):
    """Oracle: by hand: the last bit of a float32 number is not in bfloat16."""
    config, params, folder = saved
    scale = params["final_norm"]["scale"]
    other = params | {"final_norm": {"scale": jnp.nextafter(scale, jnp.inf)}}
    save_orbax(tmp_path / "other", config, other)
    damaged = with_digests_of(tmp_path / "other", folder)
    with pytest.raises(DamagedCheckpoint, match="damaged: final_norm/scale is not what was saved"):
        load_orbax(damaged, dtype="float32")
    ours, theirs = (load_orbax(each, dtype="bfloat16")[1] for each in (damaged, folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def hard_numbers():
    """float32 numbers: each sign and exponent with fractions at, below and above a tie, and random ones;
    infinities and NaNs.
    """
    tops = np.arange(2**16, dtype=np.uint32) << 16
    ends = np.random.default_rng(0).integers(0, 2**16, 2**16, dtype=np.uint32)
    every = [tops + end for end in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, ends)]
    return np.concatenate(every).view(np.float32)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16])
def test_any_numbers_are_the_same_however_they_are_read(tmp_path, stored):
    """Oracle: none is damaged: Orbax rounds as the digests do."""
    with np.errstate(invalid="ignore"):
        numbers = jnp.asarray(hard_numbers().astype(stored))
    save_arrays(tmp_path / "it", {"a": numbers})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for dtype in ("float32", "bfloat16"):
        wanted = jax.ShapeDtypeStruct(numbers.shape, dtype, sharding=place)
        read = StoredArrays(tmp_path / "it").load({"a": wanted})["a"]
        np.testing.assert_array_equal(jnp.isnan(read), jnp.isnan(numbers))


def test_a_dtype_without_a_digest_is_said_to_be_unchecked(tmp_path, capsys):
    """Oracle: the words a reader needs."""
    save_arrays(tmp_path / "it", {"a": jnp.ones(3), "b": jnp.ones(2, jnp.int8)})
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kinds = {"a": jax.ShapeDtypeStruct((3,), "float16", sharding=place)}
    kinds["b"] = jax.ShapeDtypeStruct((2,), "int8", sharding=place)
    StoredArrays(tmp_path / "it").load(kinds)
    assert "it: not checked, as no digests are of their dtype: a\n" in capsys.readouterr().out


def test_a_folder_without_digests_is_refused_by_name(saved, tmp_path):
    """Oracle: a folder as Orbax alone writes it."""
    config, params, folder = saved
    (tmp_path / "old").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "old")
    ocp.save(tmp_path / "old" / "params", params)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'old' / 'params'} has no digests"):
        load_orbax(tmp_path / "old")


@pytest.fixture(scope="module")
def rewarding(tmp_path_factory):
    """A reward model's folder."""
    config, params = tiny_model("gqa")
    params = reward_params(config, params, one_device(), jax.random.key(3))
    about = {"kind": "safety", "template": "{question}\n", "tokenizer": "arithmetic"}
    folder = tmp_path_factory.mktemp("rewarding") / "it"
    save_reward_model(folder, reward_config(config), params, about)
    return folder


@pytest.mark.parametrize(
    "part, file, words",
    [
        # So small that Orbax keeps it in a node of its database, which has a checksum
        ("head", "d", "process 0 cannot read it"),
        ("decoder/params", "ocdbt.process_0", "[a-z_/]+ is not what was saved"),
    ],
)
def test_a_damaged_reward_model_is_named_and_keeps_its_exit_status(
    rewarding, tmp_path, part, file, words
):
    """Oracle: by hand: the folder of its part, within the field that names the model."""
    folder = shutil.copytree(rewarding, tmp_path / "it")
    load_reward_model(folder, one_device())
    flip(largest(folder / part / "state" / file))
    with pytest.raises(DamagedCheckpoint, match=f"^liked: {folder / part} is damaged: {words}"):
        load_model_rewards({"liked": ModelRewardSettings(str(folder))}, one_device())


def test_the_digest_of_a_small_head_is_compared(rewarding, tmp_path):
    """Oracle: by hand: the head of another reward model, beside the digests of this one."""
    folder = shutil.copytree(rewarding, tmp_path / "it")
    _, params, _ = load_reward_model(folder, one_device())
    name = folder / "head" / "_CHECKPOINT_METADATA"
    digests = name.read_bytes()
    shutil.rmtree(folder / "head")
    save_arrays(folder / "head", jax.tree.map(lambda leaf: leaf + 1, params["head"]))
    name.write_bytes(digests)
    with pytest.raises(
        DamagedCheckpoint, match="head is damaged: bias, weight are not what was saved"
    ):
        load_reward_model(folder, one_device())


@pytest.fixture(scope="module")
def adapted(saved, tmp_path_factory):
    """(ModelConfig, params of the base, an adapter's folder)."""
    config, params, base = saved
    folder = tmp_path_factory.mktemp("adapted") / "it"
    adapter = AdapterSettings(rank=2, alpha=4.0)
    both = with_adapter(config, jax.tree.map(jnp.copy, params), adapter, one_device(), seed=0)
    save_adapter(folder, config, both, base)
    return config, params, folder


def flip_last(path):
    """Another byte among the last tensor's numbers."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x10
    path.write_bytes(content)


ADAPTERS = {
    "flipped": (
        flip_last,
        r"base_model\.[\w.]+\.weight is not what was saved; of its \d+ parts 1 ",
    ),
    "cut": (lambda path: os.truncate(path, 5000), "process 0 cannot read it .SafetensorError"),
    "empty": (lambda path: path.write_bytes(b""), "process 0 cannot read it .SafetensorError"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_damaged_adapter_is_named(adapted, tmp_path, name):
    """Oracle: the words a reader needs."""
    config, params, folder = adapted
    folder = shutil.copytree(folder, tmp_path / "it")
    load_adapter(folder, config, params, one_device())
    path = folder / "adapter_model.safetensors"
    damage, words = ADAPTERS[name]
    damage(path)
    with pytest.raises(DamagedCheckpoint, match=f"^{path} is damaged: {words}"):
        load_adapter(folder, config, params, one_device())


ONE_OF_TWO = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.parallel import make_mesh

mesh = make_mesh(fsdp=2, tensor=2, data=2)
load_orbax(sys.argv[3], mesh=mesh)
for folder in sys.argv[4:]:
    try:
        load_orbax(folder, mesh=mesh)
    except DamagedCheckpoint as error:
        print("found:", error, flush=True)
"""


@pytest.mark.slow
def test_two_processes_find_the_same_damage(saved, tmp_path):
    """Oracle: the message of one process."""
    _, params, folder = saved
    flipped, cut = (shutil.copytree(folder, tmp_path / name) for name in ("flipped", "cut"))
    flip(arrays_of(flipped))
    DAMAGES["cut"](cut)
    codes, outputs = run_two(
        ONE_OF_TWO, folder, flipped, cut, xla_flags="--xla_force_host_platform_device_count=4"
    )
    assert codes == [0, 0], outputs
    (changed,) = what_changed(flipped, params)
    for output in outputs:
        first, second = (line for line in output.splitlines() if line.startswith("found:"))
        assert f"{flipped / 'params'} is damaged: {changed} is not what was saved" in first
        assert f"{cut / 'params'} is damaged: process 0 cannot read" in second
