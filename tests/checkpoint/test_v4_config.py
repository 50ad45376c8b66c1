"""config.json of DeepSeek-V4 in both spellings, and back."""

import json

import pytest
import transformers

from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.v4_config import read_v4_config, released_fields, v4_config_json
from deepseek_jax.models.v4.config import parse_config
from tests.checkpoint import v4_released
from tests.models.v4 import tiny
from tests.models.v4.test_config import FLASH, PRO


def as_transformers_writes(raw):
    raw = json.loads(json.dumps(raw))
    return json.loads(transformers.DeepseekV4Config.from_dict(raw).to_json_string())


@pytest.mark.parametrize("raw", [FLASH, PRO], ids=["Flash", "Pro"])
def test_the_spelling_of_transformers_is_the_same_network(raw):
    """Oracle: the released file, which transformers read and wrote: layers, tables, both rotary tables."""
    released = parse_config(raw)
    again = parse_config(released_fields(as_transformers_writes(raw)))
    assert again.layers == released.layers
    for name in ("num_hash_layers", "rope_theta", "compress_rope_theta", "qk_rope_head_dim"):
        assert getattr(again, name) == getattr(released, name)
    # transformers writes a factor of 1, which the network always has
    assert again.rope_scaling == released.rope_scaling


@pytest.mark.parametrize("config", [parse_config(FLASH), parse_config(PRO), tiny.config()])
def test_what_is_written_is_read_back_here_and_by_transformers(config):
    """Oracle: the config itself; transformers' kinds of layers, tables and frequencies."""
    raw = json.loads(json.dumps(v4_config_json(config, dtype="bfloat16")))
    assert parse_config(released_fields(raw)) == config
    theirs = as_transformers_writes(raw)
    kinds = [("hash_moe" if k.has_table else "moe", k.attention) for k in config.layers]
    assert [*zip(theirs["mlp_layer_types"], theirs["layer_types"], strict=True)] == kinds
    assert parse_config(released_fields(theirs)).rope_scaling == config.rope_scaling
    assert theirs["dtype"] == "bfloat16" and "quantization_config" not in raw


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(mlp_layer_types=["moe", "hash_moe", "moe", "moe"]), "mlp_layer_types"),
        (dict(rope_parameters=dict(main=dict(rope_type="yarn"))), "rope_parameters"),
        (
            dict(rope_parameters=dict(compress=dict(rope_type="yarn", attention_factor=1.3))),
            "factor",
        ),
        (dict(model_type="deepseek_v41"), "DeepSeek-V4.1"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(changes, words, tmp_path):
    """Oracle: the field and the file's path in the message."""
    raw = as_transformers_writes(v4_config_json(tiny.config(), dtype="float32"))
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_v4_config(tmp_path) == tiny.config()
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ValueError, match=words) as error:
        read_v4_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_the_reader_of_other_models_says_which_one_reads_v4(tmp_path):
    """Oracle: the name of the function."""
    v4_released.write(tmp_path)
    with pytest.raises(ValueError, match="checkpoint.load_v4"):
        read_config(tmp_path)
