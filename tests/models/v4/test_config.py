"""V4Config: the released config.json files, and what is refused before anything compiles."""

import dataclasses
from collections import Counter

import jax
import pytest
from flax.linen import unbox

from deepseek_jax.models.network_config import build_model
from deepseek_jax.models.v4 import decoder
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW, V4Config, parse_config
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.shard import logical_names, shardings
from deepseek_jax.settings import build
from tests.models.v4 import tiny

BOTH = dict(
    architectures=["DeepseekV4ForCausalLM"],
    model_type="deepseek_v4",
    vocab_size=129280,
    head_dim=512,
    num_key_value_heads=1,
    qk_rope_head_dim=64,
    o_lora_rank=1024,
    index_n_heads=64,
    index_head_dim=128,
    num_experts_per_tok=6,
    n_shared_experts=1,
    num_hash_layers=3,
    swiglu_limit=10.0,
    sliding_window=128,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=False,
    rms_norm_eps=1e-6,
    max_position_embeddings=1048576,
    scoring_func="sqrtsoftplus",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    rope_theta=10000,
    compress_rope_theta=160000,
    rope_scaling=dict(
        type="yarn",
        factor=16,
        original_max_position_embeddings=65536,
        beta_fast=32,
        beta_slow=1,
    ),
    num_nextn_predict_layers=1,
    hidden_act="silu",
    attention_bias=False,
    torch_dtype="bfloat16",
    expert_dtype="fp4",
    quantization_config=dict(
        quant_method="fp8", fmt="e4m3", scale_fmt="ue8m0", weight_block_size=[128, 128]
    ),
)
FLASH = BOTH | dict(
    hidden_size=4096,
    num_hidden_layers=43,
    num_attention_heads=64,
    q_lora_rank=1024,
    o_groups=8,
    index_topk=512,
    n_routed_experts=256,
    moe_intermediate_size=2048,
    routed_scaling_factor=1.5,
    compress_ratios=[0, 0, *[4, 128] * 20, 4, 0],
)
PRO = BOTH | dict(
    hidden_size=7168,
    num_hidden_layers=61,
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    index_topk=1024,
    n_routed_experts=384,
    moe_intermediate_size=3072,
    routed_scaling_factor=2.5,
    compress_ratios=[128, 128, *[4, 128] * 29, 4, 0],
)


@pytest.mark.parametrize(("raw", "counts"), [(FLASH, (2, 21, 20)), (PRO, (0, 30, 31))])
def test_released_layers(raw, counts):
    """Oracle: by hand: how many layers attend to the window alone, to CSA's and to HCA's entries. The first
    three have a table, and the last entry is of multi-token prediction.
    """
    config = parse_config(raw)
    kinds = [kind.attention for kind in config.layers]
    assert tuple(kinds.count(kind) for kind in (WINDOW, CSA, HCA)) == counts
    assert {(kind.attention, kind.rate) for kind in config.layers} <= {
        (WINDOW, 0),
        (CSA, 4),
        (HCA, 128),
    }
    assert [kind.has_table for kind in config.layers].index(False) == 3
    assert config.rope_scaling.rope_type == "yarn" and config.rope_scaling.factor == 16


@pytest.mark.parametrize(
    ("raw", "billions"),
    # Flash: 43 x (attention 106.95M, experts 6442M, shared expert 25.2M, router 1.05M, mixing 0.79M),
    # 21 CSA of 19.1M, 20 HCA of 4.3M, embedding and head 1059M
    [(FLASH, 284.3), pytest.param(PRO, 1600, marks=pytest.mark.slow)],
    ids=["Flash", "Pro"],
)
def test_released_sizes(raw, billions):
    """Oracle: the published 284B and 1.6T without multi-token prediction, and Flash's parts by hand. One
    layer of each kind is made, and counted as often as the model has it.
    """
    config = parse_config(raw | dict(num_nextn_predict_layers=0))
    times = Counter(config.layers)
    # Tables come first
    kinds = sorted(times, key=lambda kind: not kind.has_table)
    one_of_each = dataclasses.replace(
        config,
        num_hidden_layers=len(kinds),
        compress_ratios=tuple(kind.rate for kind in kinds),
        num_hash_layers=sum(kind.has_table for kind in kinds),
    )
    shapes = jax.eval_shape(lambda: decoder.init_params(one_of_each, jax.random.key(0)))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in shapes.items()}
    count = sum(times[kind] * sizes.pop(f"layers_{i}") for i, kind in enumerate(kinds))
    count += sum(sizes.values())
    # The tables of 129,280 x 6 in three layers are no parameters of the paper
    count -= 3 * 129280 * 6
    assert count / 1e9 == pytest.approx(billions, rel=2e-4 if raw is FLASH else 0.02)


def test_ratios_and_types_say_the_same():
    """Oracle: by hand."""
    sizes = tiny.SIZES | dict(qk_rope_head_dim=8, num_hidden_layers=3)
    by_ratio = V4Config(**sizes, compress_ratios=(0, 4, 128, 0))
    rates = ((CSA, 4), (HCA, 128))
    by_type = V4Config(**sizes, layer_types=(WINDOW, CSA, HCA), compress_rates=rates)
    assert by_ratio.layers == by_type.layers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_type="deepseek_v41"), ["model_type='deepseek_v41'", "V4.1", "not supported"]),
        (dict(model_type="deepseek_v3"), ["model_type='deepseek_v3'", "'deepseek_v4'"]),
        (dict(scoring_func="sigmoid"), ["scoring_func='sigmoid'", "'sqrtsoftplus'"]),
        (dict(n_shared_experts=2), ["n_shared_experts=2", "1"]),
        (dict(tie_word_embeddings=True), ["tie_word_embeddings=True"]),
        (dict(compress_ratios=[0] * 42), ["compress_ratios has 42", "num_hidden_layers=43"]),
        (dict(compress_ratios=[0, 8] * 22), ["compress_ratios: 8", "0, 4, 128", "layer_types"]),
        (
            dict(compress_ratios=[0] * 43 + [4]),
            ["compress_ratios ends with 4", "num_hidden_layers=43"],
        ),
        (dict(compress_ratios=None), ["compress_ratios", "layer_types"]),
        (dict(compress_rates=((CSA, 4),)), ["compress_rates", "layer_types"]),
        (dict(layer_types=[WINDOW] * 43), ["compress_ratios", "layer_types", "not both"]),
        (dict(qk_rope_head_dim=63), ["qk_rope_head_dim=63", "even"]),
        (dict(index_head_dim=32), ["index_head_dim=32", "qk_rope_head_dim=64"]),
        (dict(head_dim=32), ["head_dim=32", "qk_rope_head_dim=64"]),
        (dict(o_groups=5), ["num_attention_heads=64", "o_groups=5"]),
        (dict(num_experts_per_tok=300), ["num_experts_per_tok=300", "n_routed_experts=256"]),
        (dict(num_hash_layers=44), ["num_hash_layers=44", "num_hidden_layers=43"]),
        (dict(rope_scaling=dict(type="linear", factor=2.0)), ["rope_type='linear'", "'yarn'"]),
        (dict(hc_mult=0), ["config.hc_mult=0"]),
        (dict(q_lora_rank=None), ["q_lora_rank"]),
        # Without it, transformers assumes 1.5
        (dict(routed_scaling_factor=None), ["lacks routed_scaling_factor"]),
    ],
)
def test_what_is_not_deepseek_v4_is_an_error_that_names_the_field(change, words):
    """Oracle: the message has the field, its value and what is allowed."""
    with pytest.raises(ValueError) as error:
        parse_config(FLASH | change)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(layer_types=(WINDOW, CSA)), ["layer_types has 2", "num_hidden_layers=4"]),
        (dict(compress_rates=((CSA, 4),)), ["compress_rates", f"'{HCA}'"]),
        (dict(compress_rates=(*tiny.RATES, (WINDOW, 4))), ["compress_rates", f"'{WINDOW}'"]),
        (dict(layer_types=(WINDOW,) * 4, indexer_loss="dense"), ["indexer_loss='dense'", "'none'"]),
        (dict(layer_types=("full_attention",) * 4), ["layer_types", "'full_attention'", CSA]),
    ],
)
def test_own_layer_types_are_checked(change, words):
    """Oracle: as above."""
    fields = tiny.SIZES | dict(
        qk_rope_head_dim=8, layer_types=tiny.LAYERS, compress_rates=tiny.RATES
    )
    build(V4Config, fields, "config.model")
    with pytest.raises(ValueError) as error:
        build(V4Config, fields | change, "config.model")
    assert str(error.value).startswith("config.model")
    for word in words:
        assert word in str(error.value)


def test_every_axis_of_a_parameter_has_a_row_in_the_table():
    """Oracle: shardings, which refuses a logical axis without a row; a group of heads is on one device."""
    mesh = make_mesh(expert=2, fsdp=2, tensor=2)
    config = tiny.config(num_nextn_predict_layers=1)
    boxed = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
    placed = shardings(mesh, logical_names(boxed), unbox(boxed))
    attention = placed["layers_1"]["attention"]
    assert attention["out_down"].spec[0] == attention["out_up"].spec[0] == "tensor"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(dtype="float16"), ["model.dtype='float16'", "bfloat16"]),
        (dict(remat="some"), ["model.remat='some'", "full"]),
        (dict(release_rounding=True, head_dim=500), ["release_rounding", "head_dim=500", "64"]),
        (
            dict(release_rounding=True, head_dim=72, index_head_dim=96),
            ["release_rounding", "index_head_dim=96"],
        ),
        (dict(fp8=True), ["model", "fp8"]),
        (dict(model_type="deepseek_v44"), ["model.model_type='deepseek_v44'", "mean deepseek_v4?"]),
    ],
)
def test_a_way_to_run_it_that_it_does_not_have_is_an_error(change, words):
    """Oracle: the message has the field, its value and what is allowed."""
    fields = tiny.SIZES | dict(model_type="deepseek_v4", qk_rope_head_dim=8)
    fields |= dict(compress_ratios=[0] * 4)
    with pytest.raises(ValueError) as error:
        build_model(fields | change)
    for word in words:
        assert word in str(error.value)


def test_config_json_does_not_say_how_to_run_it():
    """Oracle: by hand: transformers writes the dtype of the parameters as dtype."""
    assert parse_config(FLASH | dict(dtype="bfloat16", remat="full")) == parse_config(FLASH)
