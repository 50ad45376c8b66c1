"""ModelConfig: derived fields, and the values that it refuses before anything compiles."""

import dataclasses
import typing

import numpy as np
import pytest

from configs import models
from deepseek_jax.data import preferences
from deepseek_jax.distill import divergences
from deepseek_jax.losses import settings as loss_settings
from deepseek_jax.models import ModelConfig, RopeScaling, build_model, config, remat_policies
from deepseek_jax.models.config import OF_THE_RUN, RunSettings, how_to_run
from deepseek_jax.models.network_config import check_architecture
from deepseek_jax.settings import build
from tests import tiny

TINY = models.deepseek_v3_tiny()
SPARSE = dict(model_type="deepseek_v32", index_n_heads=4, index_head_dim=32, index_topk=16)
LLAMA = dict(
    model_type="llama",
    vocab_size=32,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
)


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (TINY, dict(kv_lora_rank=None, v_head_dim=None), ["kv_lora_rank", "v_head_dim"]),
        (TINY, dict(qk_rope_head_dim=15), ["qk_rope_head_dim=15", "even"]),
        (TINY, dict(num_experts_per_tok=None), ["num_experts_per_tok"]),
        (TINY, dict(n_group=3), ["n_routed_experts=8", "n_group=3"]),
        (TINY, dict(topk_group=5), ["topk_group=5", "n_group=4"]),
        (TINY, dict(num_experts_per_tok=5), ["num_experts_per_tok=5", "topk_group"]),
        (TINY, dict(n_group=8, topk_group=4), ["n_group=8", "best two"]),
        (TINY, dict(index_topk=4), ["index_topk=4", "'deepseek_v3'", "'deepseek_v32'"]),
        (TINY, dict(indexer_loss="sparse"), ["indexer_loss='sparse'", "'deepseek_v3'", "'none'"]),
        (TINY | SPARSE, dict(index_n_heads=None), ["'deepseek_v32' needs index_n_heads"]),
        (TINY | SPARSE, dict(q_lora_rank=None), ["needs q_lora_rank"]),
        (TINY | SPARSE, dict(index_topk=300), ["index_topk=300", "max_position_embeddings=256"]),
        (TINY | SPARSE, dict(index_head_dim=31), ["index_head_dim=31", "qk_rope_head_dim=32"]),
        (TINY, dict(first_k_dense_replace=3), ["first_k_dense_replace=3", "0..2"]),
        (LLAMA, dict(num_key_value_heads=3), ["num_attention_heads=4", "num_key_value_heads=3"]),
        (LLAMA, dict(head_dim=7), ["head_dim=7", "even"]),
        (LLAMA, dict(hidden_size=26), ["hidden_size=26", "num_attention_heads=4"]),
        (LLAMA, dict(num_nextn_predict_layers=1), ["num_nextn_predict_layers", "n_routed_experts"]),
    ],
)
def test_a_config_that_cannot_be_is_an_error_that_names_the_field(base, change, words):
    """Oracle: the message has the field, its value and the allowed values."""
    with pytest.raises(ValueError) as error:
        build(ModelConfig, dict(base, **change), "config.model")
    assert str(error.value).startswith("config.model.")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(rope_type="dynamic", factor=2.0), ["'dynamic'", "llama3", "yarn"]),
        (dict(rope_type="yarn", factor=2.0), ["original_max_position_embeddings"]),
        (
            dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=64),
            ["low_freq_factor", "high_freq_factor"],
        ),
    ],
)
def test_rope_scaling_names_what_it_lacks(fields, words):
    """Oracle: by hand."""
    with pytest.raises(ValueError) as error:
        RopeScaling(**fields)
    for word in words:
        assert word in str(error.value)


def test_heads_default_to_one_key_head_a_query_head():
    """Oracle: Hugging Face's defaults: num_key_value_heads = heads, head_dim = hidden_size / heads."""
    config = ModelConfig(**LLAMA)
    assert (config.num_key_value_heads, config.head_dim) == (4, 6)


def test_a_dense_model_has_no_moe_layers_and_a_sparse_one_counts_them():
    """Oracle: by hand."""
    assert ModelConfig(**LLAMA).num_moe_layers == 0
    config = ModelConfig(**dict(TINY, num_hidden_layers=5, first_k_dense_replace=2))
    assert (config.num_dense_layers, config.num_moe_layers) == (2, 3)


@pytest.mark.parametrize(
    ("given", "ids"), [(None, ()), (2, (2,)), (0, (0,)), ([1, 2], (1, 2)), ((3,), (3,))]
)
def test_end_tokens_are_always_a_tuple(given, ids):
    """Oracle: by hand; token 0 is an end token like any other."""
    assert ModelConfig(**LLAMA, eos_token_id=given).eos_ids == ids


def test_the_config_can_be_hashed_and_not_changed():
    """Oracle: jit takes it as a static argument, so it must hash and stay."""
    config = ModelConfig(**TINY)
    assert hash(config) == hash(ModelConfig(**TINY))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 1


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)
# Another value of every field of the architecture, such that the config can be
OTHERS = dict(
    model_type="deepseek_v2",
    vocab_size=333,
    hidden_size=96,
    intermediate_size=77,
    num_hidden_layers=5,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    q_lora_rank=None,
    kv_lora_rank=9,
    qk_nope_head_dim=10,
    qk_rope_head_dim=12,
    v_head_dim=11,
    index_n_heads=3,
    index_head_dim=48,
    index_topk=7,
    n_routed_experts=16,
    n_shared_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=13,
    first_k_dense_replace=0,
    n_group=2,
    topk_group=1,
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=1.75,
    rope_theta=5000.0,
    rope_scaling=YARN,
    rms_norm_eps=3e-5,
    tie_word_embeddings=True,
)


def test_every_field_of_an_architecture_is_compared():
    """Oracle: the list above: no field is missing that a run may not set."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert OTHERS.keys() == fields - OF_THE_RUN


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_than_the_checkpoints_is_named_by_its_field(name):
    """Oracle: the field, its value in the block and in the checkpoint, and the checkpoint's path."""
    block = LLAMA if name in ("num_key_value_heads", "head_dim") else TINY
    block = dict(block, num_key_value_heads=4, head_dim=6) if block is LLAMA else block
    block = block | SPARSE if name.startswith("index_") else block
    theirs = build_model(block)
    ours = dict(block, **{name: OTHERS[name]})
    with pytest.raises(ValueError) as error:
        check_architecture(ours, theirs, "/checkpoints/x")
    given = getattr(build_model(ours), name)
    assert f"/checkpoints/x has {name}={getattr(theirs, name)!r}" in str(error.value)
    assert f"model.{name}={given!r} names another architecture" in str(error.value)


def test_what_is_the_runs_may_differ_from_the_checkpoint():
    """Oracle: by hand, field by field; and a block without an architecture is compared with nothing."""
    theirs = build_model(TINY)
    how = dict(dtype="bfloat16", scan_layers=True, fp8=True, remat="full", expert_buffer=2.0)
    how |= dict(max_position_embeddings=77, initializer_range=0.5, num_nextn_predict_layers=0)
    check_architecture(TINY | how | dict(bos_token_id=5, eos_token_id=6), theirs, "x")
    check_architecture(dict(dtype="bfloat16"), ModelConfig(**LLAMA), "x")


def test_the_float32_numbers_of_a_file_are_the_configs():
    """Oracle: numpy's rounding to float32; one in the fifth digit is another number."""
    block = dict(TINY, rms_norm_eps=1e-6, rope_theta=10_000.1)
    rounded = {name: float(np.float32(block[name])) for name in ("rms_norm_eps", "rope_theta")}
    assert all(rounded[name] != block[name] for name in rounded)
    check_architecture(block, build_model(block | rounded), "x.gguf")
    with pytest.raises(ValueError, match="rope_theta=10000.2"):
        check_architecture(block, build_model(block | dict(rope_theta=10_000.2)), "x.gguf")


@pytest.mark.parametrize(
    "change",
    [
        dict(topk_group=4),
        dict(num_experts_per_tok=4),
        dict(first_k_dense_replace=2, num_nextn_predict_layers=0),
        dict(n_routed_experts=1, n_group=1, topk_group=1, num_experts_per_tok=1),
        SPARSE | dict(index_topk=256),
        dict(expert_buffer=1.0),
    ],
)
def test_the_last_values_that_are_possible_are_taken(change):
    """Oracle: by hand: each field at its bound."""
    config = build_model(TINY | change)
    assert all(getattr(config, name) == value for name, value in change.items())


def test_a_width_that_heads_do_not_divide_needs_the_size_of_a_head():
    """Oracle: by hand: with it, heads of keys are as many as those of queries."""
    config = build_model(LLAMA | dict(hidden_size=26, head_dim=6))
    assert config.num_key_value_heads == 4 and config.head_dim == 6
    with pytest.raises(ValueError, match="hidden_size=26"):
        build_model(LLAMA | dict(hidden_size=26, num_key_value_heads=4))


def test_two_groups_of_one_expert_have_no_best_two():
    """Oracle: the message; by affinities of V2 a group needs one expert."""
    fields = dict(n_routed_experts=2, n_group=2, topk_group=2, num_experts_per_tok=2)
    with pytest.raises(ValueError, match="n_group=2 leaves 1 expert .* best two"):
        build_model(TINY | fields)
    build_model(TINY | fields | dict(model_type="deepseek_v2", scoring_func="softmax"))


def test_queries_select_in_rows_longer_than_the_top_k():
    """Oracle: by hand, of a top-k of 16: never without an indexer, nor where it learns of dense rows."""
    sparse, dense = (build_model(TINY | SPARSE | dict(indexer_loss=x)) for x in ("none", "dense"))
    assert sparse.selects(17) and not sparse.selects(16)
    assert not dense.selects(17) and not build_model(TINY).selects(17)


@pytest.mark.parametrize(
    "eos, ids", [(None, ()), (0, (0,)), (7, (7,)), ((7, 8), (7, 8)), ([7, 8], (7, 8))]
)
def test_the_tokens_that_end_a_completion_are_a_tuple(eos, ids):
    """Oracle: by hand; token 0 may be one."""
    assert dataclasses.replace(build_model(LLAMA), eos_token_id=eos).eos_ids == ids


def test_fields_that_a_config_leaves_out():
    """Oracle: by hand: no experts, no modules, plain rotary positions, float32 and no recomputation."""
    config = ModelConfig(**LLAMA)
    left = {field.name for field in dataclasses.fields(config)} - LLAMA.keys()
    given = {name: value for name in left if (value := getattr(config, name)) is not None}
    run = dict(dtype="float32", scan_layers=False, fp8=False, remat="none", indexer_loss="none")
    assert given == run | dict(
        num_key_value_heads=4,
        head_dim=6,
        n_shared_experts=0,
        first_k_dense_replace=0,
        n_group=1,
        topk_group=1,
        scoring_func="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        num_nextn_predict_layers=0,
        rope_theta=10_000.0,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        initializer_range=0.02,
    )
    of_run = dataclasses.asdict(RunSettings())
    assert {name: value for name, value in of_run.items() if value is not None} == run
    yarn = RopeScaling("yarn", 4.0, 32)
    assert (yarn.beta_fast, yarn.beta_slow) == (32.0, 1.0)


def test_how_to_run_is_what_does_not_change_the_parameters():
    """Oracle: by hand."""
    block = LLAMA | dict(dtype="bfloat16", remat="full", rope_theta=5.0)
    assert how_to_run(block) == dict(dtype="bfloat16", remat="full")


@pytest.mark.parametrize(
    "names, table",
    [
        (config.ModelType, config.ATTENTION_OF),
        (config.IndexerLoss, config.INDEXER_LOSSES),
        (remat_policies.RematName, remat_policies.REMAT_POLICIES),
        (loss_settings.LossType, loss_settings.NORMALIZES_STD),
        (preferences.RewardKind, preferences.RESPONSES),
        (divergences.DivergenceName, divergences.DIVERGENCES),
    ],
    ids=lambda x: None if isinstance(x, dict) else "names",
)
def test_the_names_of_a_type_are_the_keys_of_its_table(names, table):
    """Oracle: the table."""
    assert list(typing.get_args(names)) == list(table)


def test_sizes_that_a_model_lacks_are_named():
    """Oracle: by hand; q_lora_rank is None where queries have no latent (DeepSeek-V2-Lite)."""
    mla, gqa = tiny.CONFIGS["mla_moe"], tiny.CONFIGS["gqa"]
    assert mla.latent == (12, 10, 8, 4, 6) and mla.experts == (8, 2, 16)
    assert dataclasses.replace(mla, q_lora_rank=None).latent.q_lora_rank is None
    assert gqa.grouped == (2, 6) and tiny.SPARSE.indexer == (12, 2, 8, 5)
    for name in ("latent", "experts", "indexer"):
        with pytest.raises(AssertionError, match="a qwen2 model has no "):
            getattr(gqa, name)
