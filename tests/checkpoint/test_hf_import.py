"""Reading Hugging Face folders: released formats, placement, memory, and every way a file can be wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_jax.checkpoint import hf_tensors, load_hf
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.parallel import make_mesh
from tests.models.families import write_released_checkpoint, write_tiny_checkpoint
from tests.quick import others_slow

DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture
def tiny(tmp_path):
    """-> (folder, its one file, {name: tensor} in it), DeepSeek-V3."""
    write_tiny_checkpoint("deepseek_v3", tmp_path)
    file = tmp_path / "model.safetensors"
    return tmp_path, file, load_file(file)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """-> (folder, {name: torch tensor}): FP8, scales in another file, MTP layer, correction bias."""
    folder = tmp_path_factory.mktemp("released")
    return folder, write_released_checkpoint(folder)[2]


def dequantized(name, tensors):
    """A tensor as float32 numbers, FP8 by a loop over blocks."""
    tensor = tensors[name].float()
    if name + "_scale_inv" in tensors:
        for (i, j), scale in np.ndenumerate(tensors[name + "_scale_inv"].numpy()):
            tensor[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] *= torch.tensor(scale)
    return tensor


@pytest.mark.parametrize("dtype", others_slow([None, "float32", "bfloat16"], None))
def test_released_format_is_read_to_the_last_bit(released, dtype):
    """Oracle: a loop over blocks in torch: e4m3 times scale in float32, then cast."""
    folder, stored = released
    config, params = load_hf(folder, dtype=dtype)
    assert config.num_nextn_predict_layers == 1
    assert config.dtype == (dtype or "bfloat16")
    as_torch = torch.float32 if dtype == "float32" else torch.bfloat16
    for name, ours in hf_tensors(config, params):
        kind = torch.float32 if "correction_bias" in name else as_torch
        theirs = dequantized(name, stored).to(kind).float().numpy()
        np.testing.assert_array_equal(ours.astype(np.float32), theirs, err_msg=name)


def test_dtypes_are_the_checkpoints_own_and_the_correction_bias_is_float32(released):
    """Oracle: by hand: bfloat16 but for router_bias, even where bfloat16 is asked for."""
    for dtype in (None, jnp.bfloat16):
        for path, leaf in by_path(load_hf(released[0], dtype=dtype)[1]).items():
            assert leaf.dtype == (jnp.float32 if path.endswith("router_bias") else jnp.bfloat16)


def test_multi_token_prediction_layers_that_the_files_leave_out_are_left_out(tiny):
    """Oracle: transformers, which drops those layers and leaves their number in config.json."""
    folder, _, _ = tiny
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_nextn_predict_layers": 1}))
    config, params = load_hf(folder)
    assert config.num_nextn_predict_layers == 0 and "mtp_0" not in params


def test_parameters_land_sharded_on_a_mesh(released):
    """Oracle: the unsharded load; and the rules: experts over expert, mlp over tensor, embed over fsdp."""
    config, whole = load_hf(released[0])
    same, sharded = load_hf(released[0], mesh=make_mesh(fsdp=2, expert=2, tensor=2))
    assert same == config
    for path, leaf in by_path(sharded).items():
        np.testing.assert_array_equal(leaf, by_path(whole)[path], err_msg=path)
    gate_up = sharded["moe_layers"]["ffn"]["gate_up"]
    assert gate_up.sharding.spec == jax.P("pipeline", "expert", ("fsdp", "context"), None, "tensor")
    assert gate_up.addressable_shards[0].data.size == gate_up.size // 8


def test_a_tied_head_written_out_must_equal_the_embedding(tmp_path):
    """Oracle: the same folder without it; and an error that names both tensors where it differs."""
    write_tiny_checkpoint("qwen2_tied", tmp_path)
    file = tmp_path / "model.safetensors"
    stored, (_, without) = load_file(file), load_hf(tmp_path)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, file)
    _, params = load_hf(tmp_path)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, without))
    stored["lm_head.weight"][3, 4] += 1
    save_file(stored, file)
    with pytest.raises(
        ValueError, match="lm_head.weight in .* must equal model.embed_tokens.weight"
    ):
        load_hf(tmp_path)


def test_a_repeated_embedding_that_differs_is_an_error(tmp_path):
    """Oracle: the name of the MTP layer's copy, which our tree has no room for."""
    tensors = write_released_checkpoint(tmp_path, fp8=False)[2]
    tensors["model.layers.3.shared_head.head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(
        ValueError, match="model.layers.3.shared_head.head.weight .* lm_head.weight"
    ):
        load_hf(tmp_path)


def assert_fault_names(folder, *words, mesh=None):
    with pytest.raises(ValueError) as error:
        load_hf(folder, mesh=mesh)
    for word in words:
        assert str(word) in str(error.value)


def test_missing_tensor_is_named(tiny):
    """Oracle: its name and the one file."""
    folder, file, stored = tiny
    del stored[DOWN]
    save_file(stored, file)
    assert_fault_names(folder, DOWN, "missing", file)


@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_missing_from_one_of_several_files_is_named(released, tmp_path, listed):
    """Oracle: its name and the file in which the index puts it, or the index where that lacks it too."""
    shutil.copytree(released[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.norm.weight"
    file = tmp_path / index["weight_map"][name]
    save_file({k: v for k, v in load_file(file).items() if k != name}, file)
    if not listed:
        del index["weight_map"][name]
        path.write_text(json.dumps(index))
    assert_fault_names(tmp_path, name, "missing", file if listed else path)


def test_an_indexers_tensor_is_named_where_it_is_missing_or_not_wanted(tmp_path):
    """Oracle: its name and the file; a V3 folder that has one is no V3."""
    write_tiny_checkpoint("deepseek_v32", tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.1.self_attn.indexer.k_norm.bias"
    stored = load_file(file)
    save_file({k: v for k, v in stored.items() if k != name}, file)
    assert_fault_names(tmp_path, name, "missing", file)
    save_file(stored, file)
    config = json.loads((tmp_path / "config.json").read_text())
    v3 = {k: v for k, v in config.items() if not k.startswith("index_") and k != "layer_types"}
    (tmp_path / "config.json").write_text(json.dumps(v3 | {"model_type": "deepseek_v3"}))
    assert_fault_names(tmp_path, "self_attn.indexer.", "no tensor of a deepseek_v3 model", file)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v3"}))
    assert_fault_names(tmp_path, "indexed_attention", "deepseek_v3", "config.json")


def test_extra_tensor_is_named(tiny):
    """Oracle: its name and the file."""
    folder, file, stored = tiny
    extra = "model.layers.1.mlp.experts.16.down_proj.weight"
    save_file(stored | {extra: stored[DOWN].clone()}, file)
    assert_fault_names(folder, extra, file)


def test_wrong_shape_is_named(tiny):
    """Oracle: name, file, both shapes; a transposed matrix has the right number of elements."""
    folder, file, stored = tiny
    save_file(stored | {DOWN: stored[DOWN].T.contiguous()}, file)
    assert_fault_names(folder, DOWN, file, [24, 48], [48, 24])


def test_truncated_tensor_is_named(tiny):
    """Oracle: the tensor that lies last in the file, which is the one cut short."""
    folder, file, stored = tiny
    save_file({"model.embed_tokens.weight": stored["model.embed_tokens.weight"]}, file)
    file.write_bytes(file.read_bytes()[:-5])
    assert_fault_names(folder, "model.embed_tokens.weight", "truncated", file)


def test_missing_shard_is_named(released, tmp_path):
    """Oracle: the name of the file that the index lists."""
    for path in released[0].iterdir():
        if "00002-of" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert_fault_names(tmp_path, "model-00002-of-00002.safetensors")


def test_missing_scale_is_named(released, tmp_path):
    """Oracle: its name and its FP8 tensor's file."""
    scale = DOWN + "_scale_inv"
    stored = {name: tensor for name, tensor in released[1].items() if name != scale}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((released[0] / "config.json").read_text())
    assert_fault_names(tmp_path, scale, tmp_path / "model.safetensors")


def test_scale_of_another_shape_is_named(released, tmp_path):
    """Oracle: its name and file, the shape it has and the one that 128 x 128 blocks need."""
    scale = "model.layers.0.self_attn.kv_b_proj.weight_scale_inv"
    save_file(released[1] | {scale: torch.ones(1, 1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((released[0] / "config.json").read_text())
    assert_fault_names(tmp_path, scale, tmp_path / "model.safetensors", (1, 1), (2, 1))


def test_unreadable_dtype_is_named(tiny):
    """Oracle: name, file, the dtype and those that are read."""
    folder, file, stored = tiny
    save_file(stored | {DOWN: stored[DOWN].to(torch.int64)}, file)
    assert_fault_names(folder, DOWN, file, "I64", "BF16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mesh", [None, dict(fsdp=2, expert=4)])
def test_a_number_that_is_not_finite_is_named(tiny, value, mesh):
    """Oracle: the tensor, its file, how many there are and where the first is, as written into it."""
    folder, file, stored = tiny
    stored[DOWN][3, 5] = stored[DOWN][7, 1] = value
    save_file(stored, file)
    words = "2 numbers that are not finite, the first at [3, 5]"
    assert_fault_names(folder, DOWN, file, words, mesh=mesh and make_mesh(**mesh))


def test_a_scale_that_is_not_finite_is_named_by_its_tensor(released, tmp_path):
    """Oracle: a NaN scale makes all 128 x 128 numbers of its block NaN, or those that the tensor has."""
    stored = dict(released[1])
    stored[DOWN + "_scale_inv"] = torch.full_like(stored[DOWN + "_scale_inv"], float("nan"))
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((released[0] / "config.json").read_text())
    words = f"{DOWN} in {tmp_path / 'model.safetensors'} has {stored[DOWN].numel()} numbers"
    assert_fault_names(tmp_path, words)


@pytest.mark.parametrize(
    "index, words",
    [
        ('{"weight_map": {"a": "../secret.safetensors"}}', "names '../secret.safetensors'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names '/etc/passwd'"),
        ('{"weight_map": {"a": 3}}', "names 3"),
        ('{"weight_', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_an_index_names_files_of_its_own_folder(released, tmp_path, index, words):
    """Oracle: the index and what it says; the file outside is there and is not opened."""
    folder = tmp_path / "model"
    shutil.copytree(released[0], folder)
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "secret.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(index)
    assert_fault_names(folder, str(path), words)


MEASURE = """
import resource, sys, jax
from deepseek_jax.checkpoint import load_hf
jax.numpy.zeros(3).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = load_hf(sys.argv[1])[1]
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_host_memory_while_importing_is_the_parameters_and_a_few_tensors(tmp_path):
    """Oracle: the process's peak RSS. 406 MB in 57 tensors of at most 17 MB; a second copy would be twice.

    8 tensors' worth (134 MB) leaves room for the one that is read, transposed and copied, and for compiling.
    """
    layer = {
        "self_attn.q_proj": (1024, 1024),
        "self_attn.k_proj": (1024, 1024),
        "self_attn.v_proj": (1024, 1024),
        "self_attn.o_proj": (1024, 1024),
        "mlp.gate_proj": (4096, 1024),
        "mlp.up_proj": (4096, 1024),
        "mlp.down_proj": (1024, 4096),
        "input_layernorm": (1024,),
        "post_attention_layernorm": (1024,),
    }
    shapes = {
        f"model.layers.{i}.{name}.weight": shape for i in range(6) for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (256, 1024), "model.norm.weight": (1024,)}
    save_file({n: torch.ones(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            dict(
                model_type="llama",
                vocab_size=256,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=6,
                num_attention_heads=8,
                tie_word_embeddings=True,
            )
        )
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    size, growth = map(int, done.stdout.split())
    assert size > 400e6
    assert growth < size + 8 * 4096 * 1024 * 4
