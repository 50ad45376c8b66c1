"""GGUF files: tiny ones written by the gguf library, and SmolLM2-135M-Instruct's own."""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from deepseek_jax.checkpoint import hf_tensors, load_gguf, load_hf
from deepseek_jax.checkpoint.gguf import unpermute
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.models import ModelConfig, count_params, forward
from deepseek_jax.parallel import make_mesh
from tests.models.families import write_tiny_checkpoint


def permute(rows, heads):
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    half = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return half.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, config, params, *, architecture="llama", drop=(), extra=None, scaling=None):
    """Write a llama's float32 parameters as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in hf_tensors(config, params):
        if name.endswith("q_proj.weight"):
            tensor = permute(tensor, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            tensor = permute(tensor, config.num_key_value_heads)
        ours = names.get_name(name, try_suffixes=(".weight",))
        if ours not in drop:
            writer.add_tensor(ours, tensor)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """-> (config, params) of a tied tiny llama."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint("smollm2", folder)
    return load_hf(folder)


@pytest.fixture(scope="module")
def smollm2():
    return load_gguf(smollm2_gguf())


@pytest.mark.parametrize("mesh", [False, True])
def test_tiny_file_equals_the_folder_it_was_made_from(tiny, tmp_path, mesh):
    """Oracle: the Hugging Face folder's import, exactly: float32 is stored as it is."""
    config, params = tiny
    write_gguf(tmp_path / "a.gguf", config, params)
    again, read = load_gguf(tmp_path / "a.gguf", mesh=make_mesh(data=4, fsdp=2) if mesh else None)
    assert again.rms_norm_eps == np.float32(config.rms_norm_eps)  # GGUF keeps it in float32
    for path, leaf in by_path(read).items():
        np.testing.assert_array_equal(leaf, by_path(params)[path], err_msg=path)
    assert again.tie_word_embeddings and again.rope_theta == config.rope_theta
    assert (again.bos_token_id, again.eos_token_id) == (1, 2)


def test_untied_head_is_read(tmp_path):
    """Oracle: the Hugging Face folder's import."""
    write_tiny_checkpoint("llama", tmp_path)
    config, params = load_hf(tmp_path)
    write_gguf(tmp_path / "a.gguf", config, params)
    again, read = load_gguf(tmp_path / "a.gguf", dtype="bfloat16")
    assert not again.tie_word_embeddings and again.dtype == "bfloat16"
    np.testing.assert_array_equal(read["head"], params["head"].astype("bfloat16"))


def test_unpermute_is_transformers_rule():
    """Oracle: transformers' LlamaTensorProcessor on one random projection of 9 heads."""
    rows = np.random.default_rng(0).standard_normal((576, 64)).astype(np.float32)
    theirs = LlamaTensorProcessor()._reverse_permute_weights(rows, 9, 9)
    np.testing.assert_array_equal(unpermute(rows, 9), theirs)


def test_smollm2_has_its_published_size(smollm2):
    """Oracle: 134,515,008 parameters, and the shapes of its config.json."""
    config, params = smollm2
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008 == count_params(config)
    assert isinstance(config, ModelConfig) and config.num_key_value_heads == 3
    assert config.rms_norm_eps == np.float32(1e-5) and config.rope_theta == 1e5


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    """Oracle: the world. (Permuted rows would still say so: the exact tests above are for those.)"""
    config, params = smollm2
    tokenizer = load_tokenizer(smollm2_gguf())
    ids = tokenizer.encode("The capital of France is")
    logits = jax.jit(lambda p: forward(config, p, np.array([ids])))(params)
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


@pytest.mark.slow
def test_smollm2_logits_agree_with_transformers(smollm2):
    """Oracle: transformers' own GGUF loader. 30 layers of float32 sums in other orders; logits reach 20."""
    config, params = smollm2
    path = smollm2_gguf()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    tokens = np.random.default_rng(0).integers(3, 49152, (1, 48))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = jax.jit(lambda p: forward(config, p, tokens))(params)
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (dict(architecture="qwen2"), ["'qwen2'", "'llama'"]),
        (dict(scaling=gguf.RopeScalingType.YARN), ["scaling.type='yarn'", "Hugging Face folder"]),
        (dict(drop=["blk.1.attn_q.weight"]), ["blk.1.attn_q.weight is missing"]),
        (dict(drop=["token_embd.weight"]), ["token_embd.weight is missing"]),
        (dict(extra={"rope_freqs.weight": np.ones(4, np.float32)}), ["rope_freqs.weight"]),
        (
            dict(
                drop=["blk.0.ffn_up.weight"],
                extra={"blk.0.ffn_up.weight": np.ones((255, 48), np.float32)},
            ),
            ["blk.0.ffn_up.weight", "[255, 48]", "[256, 48]"],
        ),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(tiny, tmp_path, how, words):
    """Oracle: the file and what is wrong with it stand in the message."""
    write_gguf(tmp_path / "a.gguf", *tiny, **how)
    with pytest.raises(ValueError) as error:
        load_gguf(tmp_path / "a.gguf")
    for word in [*words, str(tmp_path / "a.gguf")]:
        assert word in str(error.value)


def test_a_file_cut_short_is_an_error(tiny, tmp_path):
    """Oracle: the file stands in the message."""
    path = tmp_path / "a.gguf"
    write_gguf(path, *tiny)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="a.gguf is not a whole GGUF file"):
        load_gguf(path)
    with pytest.raises(ValueError, match="b.gguf does not exist"):
        load_gguf(tmp_path / "b.gguf")
