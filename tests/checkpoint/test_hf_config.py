"""config.json in both spellings, and the values that are refused."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from configs import models
from deepseek_jax.checkpoint.hf_config import config_json, parse_config, read_config
from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.models.layers import position_tables
from tests.models.families import FAMILIES

R1 = dict(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="deepseek_v3",
    attention_bias=False,
    aux_loss_alpha=0.001,
    bos_token_id=0,
    eos_token_id=1,
    ep_size=1,
    first_k_dense_replace=3,
    hidden_act="silu",
    hidden_size=7168,
    initializer_range=0.02,
    intermediate_size=18432,
    kv_lora_rank=512,
    max_position_embeddings=163840,
    moe_intermediate_size=2048,
    moe_layer_freq=1,
    n_group=8,
    n_routed_experts=256,
    n_shared_experts=1,
    norm_topk_prob=True,
    num_attention_heads=128,
    num_experts_per_tok=8,
    num_hidden_layers=61,
    num_key_value_heads=128,
    num_nextn_predict_layers=1,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    quantization_config=dict(
        activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128]
    ),
    rms_norm_eps=1e-6,
    rope_scaling=dict(
        beta_fast=32,
        beta_slow=1,
        factor=40,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=4096,
        type="yarn",
    ),
    rope_theta=10000,
    routed_scaling_factor=2.5,
    scoring_func="sigmoid",
    seq_aux=True,
    tie_word_embeddings=False,
    topk_group=4,
    topk_method="noaux_tc",
    torch_dtype="bfloat16",
    v_head_dim=128,
    vocab_size=129280,
)
LITE = dict(
    R1,
    model_type="deepseek_v2",
    q_lora_rank=None,
    scoring_func="softmax",
    topk_method="greedy",
    norm_topk_prob=False,
    num_nextn_predict_layers=0,
)
LLAMA = dict(
    model_type="llama",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
)


def test_released_r1_config_is_the_named_size():
    """Oracle: configs/models.py, whose numbers are held to the published parameter count."""
    named = models.deepseek_v3()
    for run_field in ("dtype", "scan_layers", "remat"):
        del named[run_field]
    named["rope_scaling"] = RopeScaling(**named["rope_scaling"])
    assert parse_config(R1) == ModelConfig(**named)


def test_both_rope_spellings_read_the_same():
    """Oracle: the older spelling, which the test above holds to the released numbers."""
    new = {key: value for key, value in R1.items() if key not in ("rope_theta", "rope_scaling")}
    scaling = {key: value for key, value in R1["rope_scaling"].items() if key != "type"}
    new["rope_parameters"] = dict(scaling, rope_type="yarn", rope_theta=10000)
    new["num_mtp_layers"] = new.pop("num_nextn_predict_layers")
    assert parse_config(new) == parse_config(R1)


V3_2 = R1 | dict(model_type="deepseek_v32", index_n_heads=64, index_head_dim=128, index_topk=2048)


def test_released_v3_2_config_is_the_named_size():
    """Oracle: configs/models.py, and the words a reader needs for what is not V3.2."""
    named = models.deepseek_v3_2()
    for run_field in ("dtype", "scan_layers", "remat"):
        del named[run_field]
    named["rope_scaling"] = RopeScaling(**named["rope_scaling"])
    assert parse_config(V3_2) == ModelConfig(**named)
    for change, words in (
        (dict(indexer_rope_interleave=True), "indexer_rope_interleave=True is not modelled"),
        (dict(mlp_layer_types=["sparse"] * 61), "'sparse' for layer 0.*first_k_dense_replace=3"),
        (dict(layer_types=["full_attention"]), "full_attention.*only 'indexed_attention'"),
        (dict(index_topk=None), "'deepseek_v32' needs index_topk"),
        (
            dict(model_type="deepseek_v3"),
            "index_n_heads=64 is of an indexer.*'deepseek_v3' has none",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            parse_config(V3_2 | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_written_config_reads_back_the_same(family, tmp_path):
    """Oracle: the ModelConfig read from what transformers writes; and transformers reads ours."""
    FAMILIES[family]().save_pretrained(tmp_path)
    config = read_config(tmp_path)
    written = config_json(config, dtype="float32")
    assert parse_config(written) == config
    (tmp_path / "config.json").write_text(json.dumps(written))
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "again").mkdir()
    again.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again") == config


def test_an_unchanged_config_keeps_every_field_of_the_one_it_came_from():
    """Oracle: the original dict: fields that are not modelled and the spelling included."""
    assert config_json(parse_config(R1), dtype="bfloat16", like=R1) == R1


def test_a_changed_field_alone_is_rewritten():
    """Oracle: by hand: eos and the number of MTP layers, under the name that the original has for it."""
    like = {key: value for key, value in R1.items() if key != "num_nextn_predict_layers"}
    like["num_mtp_layers"] = 1
    changed = dict(like, eos_token_id=[1, 7], num_mtp_layers=0)
    assert config_json(parse_config(changed), dtype="bfloat16", like=like) == changed


def test_eos_ids_in_a_list_become_a_tuple():
    """Oracle: by hand; a list would make the config unhashable, and jit needs it hashed."""
    config = parse_config(dict(LLAMA, eos_token_id=[5, 6]))
    assert config.eos_token_id == (5, 6) and hash(config)


def test_greedy_v2_routing_has_one_group():
    """Oracle: by hand: transformers ignores n_group when topk_method is greedy."""
    config = parse_config(LITE)
    assert (config.n_group, config.topk_group, config.scoring_func) == (1, 1, "softmax")
    limited = parse_config(dict(LITE, topk_method="group_limited_greedy"))
    assert (limited.n_group, limited.topk_group) == (8, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_type="gpt2"), ["'gpt2'", "deepseek_v3", "llama", "qwen3"]),
        (dict(moe_layer_freq=2), ["moe_layer_freq=2", "1"]),
        (dict(attention_bias=True), ["attention_bias=True", "False"]),
        (dict(use_sliding_window=True), ["use_sliding_window=True"]),
        (dict(hidden_act="gelu"), ["hidden_act='gelu'", "'silu'"]),
        (dict(layer_types=["full_attention", "sliding_attention"]), ["sliding_attention"]),
        (dict(topk_method="other"), ["topk_method='other'", "noaux_tc"]),
        (dict(scoring_func="softmax"), ["scoring_func='softmax'", "'sigmoid'"]),
        (dict(num_key_value_heads=8), ["num_key_value_heads", "num_attention_heads"]),
        (dict(rope_scaling=dict(type="dynamic", factor=2.0)), ["'dynamic'", "yarn", "llama3"]),
        (dict(rope_scaling=dict(type="yarn", factor=2.0, twist=1)), ["twist", "factor"]),
        (dict(quantization_config=dict(quant_method="gptq")), ["quant_method='gptq'", "'fp8'"]),
        (dict(rope_scaling=dict(type="linear")), ["'linear'", "lack factor"]),
        (dict(vocab_size=None), ["lacks vocab_size"]),
    ],
)
def test_what_is_not_modelled_is_an_error_that_names_the_field(change, words):
    """Oracle: the field, its value and what is allowed stand in the message."""
    with pytest.raises(ValueError) as error:
        parse_config(dict(R1, **change))
    for word in words:
        assert word in str(error.value)


def test_r1_0528_qwen3_8bs_attn_factor_says_what_to_do():
    """Oracle: by hand: the released rope_scaling, whose attn_factor is 1 / (0.1 ln 4 + 1): vLLM's amplitude
    is 1, that of transformers 0.1 ln 4 + 1. Both edits of the message are read.
    """
    raw = {
        key: value for key, value in R1.items() if "rope" not in key or key == "qk_rope_head_dim"
    }
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
    own = dict(scaling, attn_factor=0.8782488562869419)
    with pytest.raises(
        ValueError, match="^attn_factor=0.878.* by attention_factor=1, .* or delete it"
    ):
        parse_config(dict(raw, rope_scaling=own))
    for attention_factor, wanted in ((1.0, 1.0), (None, 0.1 * math.log(4) + 1)):
        edited = dict(scaling, attention_factor=attention_factor)
        config = parse_config(dict(raw, rope_scaling=edited))
        cos, _ = position_tables(config, jnp.zeros(1, jnp.int32))
        np.testing.assert_allclose(cos, wanted, rtol=1e-6)


def test_quantisation_stays_as_it_was():
    """Oracle: by hand: V3.1's scale_fmt, also where an export quantises anew."""
    like = dict(R1, quantization_config=dict(R1["quantization_config"], scale_fmt="ue8m0"))
    for fp8 in (False, True):
        assert config_json(parse_config(like), dtype="bfloat16", fp8=fp8, like=like) == like


def test_llama_with_attention_bias_is_an_error():
    """Oracle: Llama's optional biases have no parameter here; leaving them out would be silent."""
    with pytest.raises(ValueError, match="attention_bias=True"):
        parse_config(dict(LLAMA, attention_bias=True))


def test_a_folder_without_config_is_an_error(tmp_path):
    """Oracle: the path stands in the message."""
    with pytest.raises(ValueError, match="config.json does not exist"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"model_type": ', "is not JSON"), ("[1]", "holds a list"), (b"\xff", "JSON")],
)
def test_a_config_that_is_no_json_object_is_an_error(tmp_path, text, words):
    """Oracle: the path stands in the message."""
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json .*{words}"):
        read_config(tmp_path)


def test_what_is_not_modelled_in_a_folder_is_an_error_that_names_the_file(tmp_path):
    """Oracle: the path, then what parse_config says."""
    (tmp_path / "config.json").write_text(json.dumps(dict(LLAMA, hidden_act="gelu")))
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: hidden_act='gelu' is not"):
        read_config(tmp_path)
