"""Writing Hugging Face folders: byte for byte, in FP8, complete or not at all."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from deepseek_jax.checkpoint import hf_export, hf_tensors, load_hf, save_hf
from deepseek_jax.models import forward
from tests.models.families import write_released_checkpoint, write_tiny_checkpoint
from tests.quick import others_slow


@pytest.fixture(
    scope="module",
    params=["deepseek_v3", pytest.param("deepseek_v32", marks=pytest.mark.slow)],
)
def released(tmp_path_factory, request):
    """-> (folder, config, params): FP8, scales in another file, MTP layer, correction bias; of V3.2 the
    scales of o_proj alone are no powers of two, against its scale_fmt.
    """
    folder = tmp_path_factory.mktemp("released")
    write_released_checkpoint(folder, family=request.param)
    return folder, *load_hf(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = write_tiny_checkpoint("deepseek_v3", folder)
    return folder, model, *load_hf(folder)


def stored(folder):
    """{name: (dtype, shape, bytes)} of every tensor in a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no dict
                tensor = opened.get_tensor(name)
                raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                tensors[name] = (str(tensor.dtype), tuple(tensor.shape), raw)
    return tensors


def test_untouched_released_checkpoint_comes_back_byte_for_byte(released, tmp_path):
    """Oracle: the folder it came from: FP8 values, scales, MTP copies, correction bias, config.json."""
    folder, config, params = released
    save_hf(tmp_path / "out", config, params, like=folder)
    assert stored(tmp_path / "out") == stored(folder)
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    assert again == json.loads((folder / "config.json").read_text())


@pytest.mark.slow
def test_untouched_v3_2_keeps_scales_that_are_no_powers_of_two(tmp_path):
    """Oracle: the folder it came from; o_proj's scales alone are none, against config.json's ue8m0."""
    write_released_checkpoint(tmp_path, family="deepseek_v32")
    save_hf(tmp_path / "out", *load_hf(tmp_path), like=tmp_path)
    written = stored(tmp_path / "out")
    assert written == stored(tmp_path)
    assert written["model.layers.0.self_attn.indexer.wk.weight"][0] == "torch.float8_e4m3fn"
    scales = {name: raw for name, (_, _, raw) in written.items() if name.endswith("_scale_inv")}
    plain = {n for n, raw in scales.items() if (np.frombuffer(raw, np.uint32) & 0x7FFFFF).any()}
    assert plain == {name for name in scales if "o_proj" in name}


@pytest.mark.parametrize("dtype", others_slow(["float32", "bfloat16"], "bfloat16"))
def test_unchanged_tensors_keep_their_bytes_whatever_dtype_they_were_loaded_in(
    released, tmp_path, dtype
):
    """Oracle: the folder it came from."""
    folder, _, _ = released
    config, params = load_hf(folder, dtype=dtype)
    save_hf(tmp_path / "out", config, params, like=folder)
    assert stored(tmp_path / "out") == stored(folder)


def test_a_changed_fp8_tensor_gets_fresh_scales_and_the_others_keep_their_bytes(released, tmp_path):
    """Oracle: the folder it came from; and the changed numbers, to e4m3's 1/16 relative to a block's top."""
    folder, config, params = released
    params = jax.tree.map(lambda leaf: leaf, params)  # dicts of its own
    out = params["moe_layers"]["attention"]["out"]
    params["moe_layers"]["attention"]["out"] = out.at[1].multiply(3)
    save_hf(tmp_path / "out", config, params, like=folder)
    before, after = stored(folder), stored(tmp_path / "out")
    name = "model.layers.2.self_attn.o_proj.weight"
    changed = {n for n in after if after[n] != before[n]}
    # Values scale along, unless the new scales are bound to powers of two
    assert changed - ({name} if config.has_indexer else set()) == {name + "_scale_inv"}
    read = dict(hf_tensors(*load_hf(tmp_path / "out")))[name].astype(np.float32)
    wanted = dict(hf_tensors(config, params))[name].astype(np.float32)
    np.testing.assert_allclose(read, wanted, atol=np.abs(wanted).max() / 16 / 16, rtol=1 / 16)


@pytest.mark.parametrize("fp8", others_slow([False, True], True))
def test_scales_of_a_ue8m0_checkpoint_stay_powers_of_two(released, tmp_path, fp8):
    """Oracle: float32's mantissa bits, all 0, in the scales of every tensor of a changed copy; its numbers,
    to e4m3's 1/16; and config.json, which still says ue8m0.
    """
    folder, config, params = released
    shutil.copytree(folder, tmp_path / "v3.1")
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"]["scale_fmt"] = "ue8m0"
    (tmp_path / "v3.1" / "config.json").write_text(json.dumps(raw))
    # Other scales than those of the folder, in every tensor
    params = jax.tree.map(lambda leaf: leaf * 1.5, params)
    save_hf(tmp_path / "out", config, params, like=tmp_path / "v3.1", fp8=fp8)
    scales = {n: t[2] for n, t in stored(tmp_path / "out").items() if n.endswith("_scale_inv")}
    assert scales
    for name, raw_bytes in scales.items():
        assert not (np.frombuffer(raw_bytes, np.uint32) & 0x7FFFFF).any(), name
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == raw
    read = dict(hf_tensors(*load_hf(tmp_path / "out")))
    for name, wanted in hf_tensors(config, params):
        wanted, top = wanted.astype(np.float32), np.abs(wanted.astype(np.float32)).max()
        near = dict(atol=top / 128, rtol=1 / 16)
        np.testing.assert_allclose(read[name].astype(np.float32), wanted, **near, err_msg=name)


def test_bfloat16_round_trip_without_like_is_byte_identical(tmp_path):
    """Oracle: the folder it came from, in bfloat16, with other shards."""
    write_tiny_checkpoint("qwen2", tmp_path / "a")
    config, params = load_hf(tmp_path / "a", dtype="bfloat16")
    save_hf(tmp_path / "b", config, params, max_shard_size=40_000)
    save_hf(tmp_path / "c", *load_hf(tmp_path / "b"))
    assert stored(tmp_path / "b") == stored(tmp_path / "c")
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    files = {file.name for file in (tmp_path / "b").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files and len(files) > 3
    assert (tmp_path / "c" / "model.safetensors").exists()


@pytest.mark.parametrize("family", others_slow(["deepseek_v3", "qwen3"], "deepseek_v3"))
def test_fp8_export_loads_in_transformers_with_our_logits(family, tmp_path):
    """Oracle: transformers, dequantising what we wrote, against our import of it; sums in another order."""
    write_tiny_checkpoint(family, tmp_path / "a")
    save_hf(tmp_path / "b", *load_hf(tmp_path / "a"), fp8=True)
    kinds = {name: dtype for name, (dtype, _, _) in stored(tmp_path / "b").items()}
    assert kinds["model.layers.1.self_attn.o_proj.weight"] == "torch.float8_e4m3fn"
    assert kinds["model.embed_tokens.weight"] == kinds["lm_head.weight"] == "torch.float32"
    if family == "deepseek_v3":
        assert kinds["model.layers.1.mlp.experts.0.up_proj.weight"] == "torch.float8_e4m3fn"
        assert kinds["model.layers.1.mlp.gate.weight"] == "torch.float32"
    config, params = load_hf(tmp_path / "b", dtype="float32")
    tokens = np.random.default_rng(0).integers(0, 96, (2, 50))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(forward(config, params, tokens), theirs, atol=2e-5, rtol=0)


def test_fp8_export_quantises_what_the_released_checkpoint_does(released, tmp_path):
    """Oracle: the released folder's own dtypes, tensor by tensor, scales and MTP layer included; V3.2's new
    scales are powers of two, by float32's mantissa bits.
    """
    folder, config, params = released
    save_hf(tmp_path / "out", config, params, fp8=True)
    dtypes = [{n: t[:2] for n, t in stored(f).items()} for f in (folder, tmp_path / "out")]
    assert dtypes[0] == dtypes[1]
    formats = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out")]
    formats = [raw["quantization_config"].get("scale_fmt") for raw in formats]
    assert formats == ["ue8m0" if config.has_indexer else None] * 2
    scales = [t[2] for n, t in stored(tmp_path / "out").items() if n.endswith("_scale_inv")]
    mantissas = np.frombuffer(b"".join(scales), np.uint32) & 0x7FFFFF
    assert mantissas.any() == (not config.has_indexer)


def test_a_stray_tied_head_is_written_where_like_has_it(tmp_path):
    """Oracle: the folder it came from, which repeats the embedding as lm_head.weight."""
    from safetensors.torch import load_file, save_file

    write_tiny_checkpoint("qwen2_tied", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    config, params = load_hf(tmp_path / "a")
    save_hf(tmp_path / "b", config, params, like=tmp_path / "a")
    save_hf(tmp_path / "c", config, params)
    assert stored(tmp_path / "b") == stored(tmp_path / "a")
    assert "lm_head.weight" not in stored(tmp_path / "c")


def test_like_hands_on_its_tokenizer_and_texts_and_no_other_weights(tiny, tmp_path):
    """Oracle: by hand, with the files that checkpoints of other formats leave beside a folder's own."""
    folder, _, config, params = tiny
    like = tmp_path / "like"
    save_hf(like, config, params, max_shard_size=50_000)
    kept = {"tokenizer.json", "generation_config.json", "chat_template.jinja", "merges.txt"}
    kept |= {"tokenizer.model", "LICENSE-CODE", "README.md"}
    left = {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "tf_model.h5"}
    left |= {"original/params.json", "consolidated.00.pth", "model.msgpack"}
    (like / "original").mkdir()
    for name in kept | left:
        (like / name).write_text(name)
    save_hf(tmp_path / "out", config, params, like=like)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors"} | kept
    assert (tmp_path / "out" / "LICENSE-CODE").read_text() == "LICENSE-CODE"


def test_a_folder_with_something_in_it_is_left_alone(tiny, tmp_path):
    """Oracle: its contents before."""
    _, _, config, params = tiny
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        save_hf(tmp_path, config, params)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_nothing_is_left_when_writing_fails(tiny, tmp_path, monkeypatch):
    """Oracle: an empty parent folder after the disk fills up at the third file."""
    _, _, config, params = tiny
    real, written = hf_export.save_file, []

    def full_disk(tensors, path, **more):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(path)
        real(tensors, path, **more)

    monkeypatch.setattr(hf_export, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_hf(tmp_path / "out", config, params, max_shard_size=50_000)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_config_are_an_error(tiny, tmp_path):
    """Oracle: the path, its shape and the expected one; nothing is written."""
    _, _, config, params = tiny
    wrong = dict(params, final_norm={"scale": params["final_norm"]["scale"][:-1]})
    with pytest.raises(ValueError, match=r"final_norm/scale is \(47,\) in params and \(48,\)"):
        save_hf(tmp_path / "out", config, wrong)
    with pytest.raises(ValueError, match="head is missing"):
        save_hf(tmp_path / "out", config, {k: v for k, v in params.items() if k != "head"})
    assert list(tmp_path.iterdir()) == []


def test_like_of_another_model_is_an_error(tiny, released, tmp_path):
    """Oracle: the tensor, both shapes, and the word like."""
    _, _, config, params = tiny
    with pytest.raises(ValueError, match="has shape .*`like` must be"):
        save_hf(tmp_path / "out", config, params, like=released[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_numpy_parameters_are_written_too(tiny, tmp_path):
    """Oracle: the jax arrays' export; bfloat16 as numpy knows it."""
    _, _, config, params = tiny
    numpy = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), params)
    save_hf(tmp_path / "a", config, numpy)
    save_hf(tmp_path / "b", config, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
