"""Writing folders of DeepSeek-V4: byte for byte, changed tensors, and for transformers."""

import dataclasses
import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deepseek_jax.checkpoint import hf_export, load_v4, save_v4
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.models.v4.decoder import forward
from tests.checkpoint import v4_released
from tests.checkpoint.test_hf_export import stored
from tests.models.families import write_tiny_checkpoint
from tests.models.v4 import tiny
from tests.quick import others_slow

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 40))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """-> (folder, config, params): FP4 experts, FP8, a module of multi-token prediction."""
    folder = tmp_path_factory.mktemp("released")
    v4_released.write(folder)
    return folder, *load_v4(folder)


@pytest.mark.parametrize(
    ("experts", "later"),
    others_slow(
        [("fp4", "mtp"), ("fp4", "dspark"), ("fp8", "mtp")], ("fp4", "dspark"), ("fp8", "mtp")
    ),
    ids=str,
)
@pytest.mark.parametrize("dtype", others_slow([None, "float32"], None))
def test_an_untouched_folder_comes_back_byte_for_byte(tmp_path, experts, later, dtype):
    """Oracle: the folder it came from: codes, scales, table, a drafter that is not read, and config.json."""
    v4_released.write(tmp_path / "a", experts=experts, later=later)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    config, params = load_v4(tmp_path / "a", dtype=dtype)
    save_v4(tmp_path / "b", config, params, like=tmp_path / "a", max_shard_size=300_000)
    assert stored(tmp_path / "b") == stored(tmp_path / "a")
    assert len([*(tmp_path / "b").glob("*.safetensors")]) > 3
    for name in ("config.json", "tokenizer.json"):
        again, before = (json.loads((tmp_path / f / name).read_text()) for f in "ba")
        assert again == before


@pytest.mark.parametrize("original", others_slow([True, False], False))
def test_a_folder_of_transformers_comes_back_byte_for_byte(tmp_path, original):
    """Oracle: the folder it came from, in its own spelling."""
    tiny.hf_model().save_pretrained(tmp_path / "a", save_original_format=original)
    save_v4(tmp_path / "b", *load_v4(tmp_path / "a"), like=tmp_path / "a")
    assert stored(tmp_path / "b") == stored(tmp_path / "a")


def test_changed_tensors_get_new_scales_and_all_others_keep_their_bytes(released, tmp_path):
    """Oracle: the folder it came from; and ml_dtypes' rounding of the changed numbers at the scales that were
    written, which are the least at which a tile fits: its largest number is in the upper half of the range.
    """
    folder, config, params = released
    params = jax.tree.map(lambda leaf: leaf, params)
    ffn, attention = params["layers_1"]["ffn"], params["layers_1"]["attention"]
    ffn["down"] = ffn["down"].at[3].multiply(1.37)
    attention["q_down"] = attention["q_down"] * 1.37
    save_v4(tmp_path / "out", config, params, like=folder)
    before, after = stored(folder), stored(tmp_path / "out")
    expert, query = "layers.1.ffn.experts.3.w2", "layers.1.attn.wq_a"
    weights, scales = (
        {f"{name}.{part}" for name in (expert, query)} for part in ("weight", "scale")
    )
    changed = {name for name in after if after[name] != before[name]}
    assert weights <= changed <= weights | scales
    kinds = [{name: tensor[:2] for name, tensor in t.items()} for t in (before, after)]
    assert kinds[0] == kinds[1]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name, ours, tile, kind in (
        (expert, ffn["down"][3].T, (1, 32), ml_dtypes.float4_e2m1fn),
        (query, attention["q_down"].T, (128, 128), ml_dtypes.float8_e4m3fn),
    ):
        ours, largest = np.asarray(ours, np.float32), float(ml_dtypes.finfo(kind).max)
        written = v4_released.decoded(f"{name}.weight", tensors)
        for (i, j), scale in np.ndenumerate(tensors[f"{name}.scale"].float().numpy()):
            part = np.s_[i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
            quotients = ours[part] / scale
            assert largest / 2 < np.abs(quotients).max() <= largest
            rounded = quotients.astype(kind).astype(np.float32) * scale
            np.testing.assert_array_equal(written[part], rounded)


def test_a_second_round_trip_of_changed_tensors_changes_nothing(released, tmp_path):
    """Oracle: the first one: new codes and scales are read and written as they are."""
    folder, config, params = released
    params = jax.tree.map(lambda leaf: leaf * 1.37, params)
    table = params["layers_0"]["ffn"]
    table["expert_table"] = by_path(released[2])["layers_0/ffn/expert_table"]
    save_v4(tmp_path / "a", config, params, like=folder)
    save_v4(tmp_path / "b", *load_v4(tmp_path / "a"), like=tmp_path / "a")
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert stored(tmp_path / "a") != stored(folder)


def logits_of_transformers(folder, dtype):
    model, report = transformers.DeepseekV4ForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=dtype, attn_implementation="eager"
    )
    assert not any(report.values()), report
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """-> (folder, our logits in float32) of a released folder in which all experts and entries are chosen: a
    choice that rounding changes would be a difference of its own.
    """
    folder = tmp_path_factory.mktemp("calm")
    cfg = dataclasses.replace(v4_released.CONFIG, num_experts_per_tok=8, index_topk=16)
    v4_released.write(folder, cfg)
    return folder, logits(*load_v4(folder, dtype="float32"))


def logits(config, params):
    return np.asarray(jax.jit(forward, static_argnums=0)(config, params, TOKENS))


def test_a_float32_export_gives_transformers_our_logits(calm, tmp_path):
    """Oracle: transformers, with no missing and no unexpected tensor; float32 sums in another order."""
    folder, ours = calm
    config, params = load_v4(folder, dtype="float32")
    save_v4(tmp_path / "a", config, params)
    theirs = logits_of_transformers(tmp_path / "a", torch.float32)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
    again, same = load_v4(tmp_path / "a")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_bfloat16_export_gives_transformers_our_logits(calm, tmp_path):
    """Oracle: transformers, with no missing and no unexpected tensor. In float32 the files are the same
    numbers as the codes, so that float32 sums in another order are the only difference; in bfloat16 both
    round.
    """
    folder, exact = calm
    config, params = load_v4(folder)
    save_v4(tmp_path / "a", config, params)
    dtypes = {dtype for dtype, _, _ in stored(tmp_path / "a").values()}
    assert dtypes == {"torch.bfloat16", "torch.float32", "torch.int64"}
    largest = np.abs(exact).max()
    wide = logits_of_transformers(tmp_path / "a", torch.float32)
    np.testing.assert_allclose(wide, exact, atol=1e-5 * largest, rtol=0)
    ours, theirs = logits(config, params), logits_of_transformers(tmp_path / "a", torch.bfloat16)
    pairs = dict(theirs=(theirs, exact), ours=(ours, exact), both=(ours, theirs))
    off = {name: np.abs(a - b).max() / largest for name, (a, b) in pairs.items()}
    print("off, of the largest logit:", off)
    # Measured: 0.012, 0.011 and 0.018: eight bits, through four layers
    assert max(off.values()) < 0.03


@pytest.mark.parametrize("with_like", others_slow([False, True], True))
def test_the_host_has_one_file_of_tensors_at_a_time(released, tmp_path, monkeypatch, with_like):
    """Oracle: what numpy has allocated whenever a file is written: the file, and the two forms of its last
    tensor, of 4.5 MB in all. A decoded copy of the model would be more.
    """
    folder, config, params = released
    most, real, numpy_only = [], hf_export.save_file, np.lib.tracemalloc_domain

    def save_file(tensors, path, **more):
        traces = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.DomainFilter(True, numpy_only)]
        )
        most.append(sum(trace.size for trace in traces.traces))
        real(tensors, path, **more)

    monkeypatch.setattr(hf_export, "save_file", save_file)
    tracemalloc.start()
    try:
        like = folder if with_like else None
        save_v4(tmp_path / "out", config, params, like=like, max_shard_size=300_000)
    finally:
        tracemalloc.stop()
    print("files:", len(most), "bytes at most:", max(most))
    assert len(most) > 5 and 100_000 < max(most) < 450_000
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 4_500_000


def test_numpy_parameters_are_written_too(released, tmp_path):
    """Oracle: the same parameters from jax."""
    _, config, params = released
    save_v4(tmp_path / "a", config, params)
    save_v4(tmp_path / "b", config, jax.tree.map(np.asarray, params))
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert np.asarray(params["embedding"]).dtype == ml_dtypes.bfloat16


def test_what_does_not_fit_is_refused_before_anything_is_written(released, tmp_path):
    """Oracle: by hand: the field, the parameter or the tensor, and an empty folder."""
    folder, config, params = released
    other = dataclasses.replace(config, swiglu_limit=3.0)
    with pytest.raises(ValueError, match=r"swiglu_limit is 3.0 in config, and 0.5 .*`like`"):
        save_v4(tmp_path / "out", other, params, like=folder)
    missing = {name: leaf for name, leaf in params.items() if name != "head"}
    with pytest.raises(ValueError, match=r"head is missing in params and .* by their V4Config"):
        save_v4(tmp_path / "out", config, missing)
    # Its config.json is the same, and one of its tensors is not
    v4_released.write(tmp_path / "short")
    tensors = load_file(tmp_path / "short" / v4_released.WEIGHTS)
    tensors["norm.weight"] = tensors["norm.weight"][:96].clone()
    save_file(tensors, tmp_path / "short" / v4_released.WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"norm.weight has shape \[160\], but \[96\].*`like` must be"
    ):
        save_v4(tmp_path / "out", config, params, like=tmp_path / "short")
    write_tiny_checkpoint("deepseek_v3", tmp_path / "v3")
    with pytest.raises(ValueError, match="model_type='deepseek_v3' is not 'deepseek_v4'"):
        save_v4(tmp_path / "out", config, params, like=tmp_path / "v3")
    assert {path.name for path in tmp_path.iterdir()} == {"short", "v3"}
    with pytest.raises(ValueError, match="is not empty"):
        save_v4(tmp_path / "v3", config, params)
