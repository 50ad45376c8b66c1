"""The name tables: complete, and each the inverse of itself read backwards."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.checkpoint.hf_names import copies, is_projection, tensors
from deepseek_jax.checkpoint.tree import abstract_params
from deepseek_jax.checkpoint.turn import parse
from deepseek_jax.models import ModelConfig

TINY_V3 = dict(models.deepseek_v3_tiny(), num_hidden_layers=3, num_nextn_predict_layers=1)
QWEN = dict(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2)
CONFIGS = {
    "deepseek_v3": TINY_V3,
    "deepseek_v2": dict(
        TINY_V3,
        model_type="deepseek_v2",
        scoring_func="softmax",
        q_lora_rank=None,
        num_nextn_predict_layers=0,
    ),
    "deepseek_v32": dict(models.deepseek_v3_2_tiny(), num_nextn_predict_layers=1),
    "qwen2": dict(QWEN, model_type="qwen2", num_attention_heads=4, num_key_value_heads=2),
    "qwen3": dict(QWEN, model_type="qwen3", num_attention_heads=4, head_dim=6),
    "llama": dict(QWEN, model_type="llama", num_attention_heads=2, tie_word_embeddings=True),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_number_of_every_parameter_has_exactly_one_place(family):
    """Oracle: a count of how often the table's places touch each entry of the tree."""
    config = ModelConfig(**CONFIGS[family])
    touched = {path: np.zeros(leaf.shape, int) for path, leaf in abstract_params(config).items()}
    for places in tensors(config).values():
        for place in places:
            touched[place.path][tuple(slice(None) if i is None else i for i in place.index)] += 1
    assert all((count == 1).all() for count in touched.values())


@pytest.mark.parametrize("family", CONFIGS)
def test_what_a_tensor_turns_into_turns_back(family):
    """Oracle: the inverse; and its size, the sum of its parts'."""
    config = ModelConfig(**CONFIGS[family])
    shapes = abstract_params(config)
    for name, places in tensors(config).items():
        shape = places[0].turn.shape
        tensor = np.arange(math.prod(shape)).reshape(shape)
        turned = [place.turn.to_parameter(tensor) for place in places]
        for place, array in zip(places, turned, strict=True):
            held = np.empty(shapes[place.path].shape)
            assert (
                held[tuple(slice(None) if i is None else i for i in place.index)].shape
                == array.shape
            )
        parts = [place.turn.to_view(array) for place, array in zip(places, turned, strict=True)]
        back = np.concatenate(parts, places[0].turn.part[0]).reshape(shape)
        np.testing.assert_array_equal(back, tensor, err_msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_block_of_a_parameter_comes_from_its_rows_alone(family):
    """Oracle: the block, cut from the whole turned tensor: the later half of every axis of its rows."""
    for places in tensors(ModelConfig(**CONFIGS[family])).values():
        for turn in {place.turn for place in places}:
            tensor = np.arange(math.prod(turn.shape)).reshape(turn.shape)
            whole = turn.to_parameter(tensor)
            ranges = [
                (size // 2 if axis < turn.row_axes else 0, size)
                for axis, size in zip(turn.order, whole.shape, strict=True)
            ]
            rows, of_rows = turn.block(tuple(ranges))
            assert len(set(rows)) == len(rows) < len(tensor)
            np.testing.assert_array_equal(
                of_rows.to_parameter(tensor[rows]), whole[tuple(slice(*ends) for ends in ranges)]
            )


def test_released_deepseek_v3_has_its_tensor_names_and_shapes():
    """Oracle: the released checkpoint: 91,991 tensors, 45,808 of them scales; some shapes by hand."""
    config = ModelConfig(**{**models.deepseek_v3(), "rope_scaling": None})
    names = tensors(config)
    assert len(names) + len(copies(config)) == 91_991 - 45_808
    assert names["model.layers.61.eh_proj.weight"][0].turn.shape == (7168, 14336)
    assert names["model.layers.3.self_attn.kv_b_proj.weight"][0].turn.shape == (32768, 512)
    assert names["model.layers.60.mlp.experts.255.down_proj.weight"][0].turn.shape == (7168, 2048)
    assert "model.layers.2.mlp.gate.weight" not in names
    assert "model.layers.3.mlp.gate.e_score_correction_bias" in names


def test_released_deepseek_v3_2_has_its_tensor_names_and_shapes():
    """Oracle: V3's names, and five tensors of an indexer in each of 62 layers, shapes by hand."""
    rest = tensors(ModelConfig(**{**models.deepseek_v3(), "rope_scaling": None}))
    names = tensors(ModelConfig(**{**models.deepseek_v3_2(), "rope_scaling": None}))
    assert len(names) == len(rest) + 5 * 62
    prefix = "model.layers.61.self_attn.indexer."
    shapes = {name: names[prefix + name][0].turn.shape for name in INDEXER}
    assert shapes == INDEXER
    quantised = {name for name in INDEXER if is_projection(prefix + name)}
    assert quantised == {"wq_b.weight", "wk.weight"}


INDEXER = {
    "wq_b.weight": (8192, 1536),
    "wk.weight": (128, 7168),
    "k_norm.weight": (128,),
    "k_norm.bias": (128,),
    "weights_proj.weight": (64, 7168),
}


def test_rotary_pairs_are_put_half_split_at_the_end_of_their_axis():
    """Oracle: by hand: 1 plain row and 4 rotary ones for each of 2 heads."""
    turn = parse("(h n+~r) d -> d h n+r", dict(h=2, n=1, r=4, d=1))
    rows = turn.to_parameter(jnp.arange(10)[:, None])[0]
    np.testing.assert_array_equal(rows, [[0, 1, 3, 2, 4], [5, 6, 8, 7, 9]])


def test_key_rows_precede_value_rows_in_each_head():
    """Oracle: by hand: 2 heads of 2 key rows and 1 value row."""
    sizes = dict(h=2, n=2, u=1, c=1)
    rows = np.arange(6)[:, None]
    keys = parse("(h n+u) c -> c h n", sizes).to_parameter(rows)
    values = parse("(h n+u) c -> c h u", sizes).to_parameter(rows)
    np.testing.assert_array_equal(keys[0], [[0, 1], [3, 4]])
    np.testing.assert_array_equal(values[0], [[2], [5]])
