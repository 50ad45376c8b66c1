"""Which weights may have an adapter, and its arrays, by hand."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from deepseek_jax.models.adapter_modules import Axes, adapter_axes, matrix_axes, module_axes
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import as_read, init_adapter
from deepseek_jax.parallel import make_mesh
from tests.tiny import CONFIGS

GQA, MOE = CONFIGS["gqa"], CONFIGS["mla_moe"]
EMBED = dict(embed=24)


def test_the_modules_of_a_dense_model():
    """Oracle: by hand: four products of attention, and a gated MLP as three modules."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    found, lead = module_axes(GQA), dict(layers=2)
    assert {module.rpartition(".")[2] for _, module in found} == {
        *names, "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert {stack for stack, _ in found} == {"dense_layers"}
    heads, width = dict(heads=4, head_dim=6), dict(mlp=32)
    assert found["dense_layers", "self_attn.q_proj"] == Axes(lead, EMBED, heads)
    assert found["dense_layers", "self_attn.o_proj"] == Axes(lead, heads, EMBED)
    for half in ("gate", "up"):
        assert found["dense_layers", f"mlp.{half}_proj"] == Axes(lead, EMBED, width)
    assert found["dense_layers", "mlp.down_proj"] == Axes(lead, width, EMBED)


def test_the_modules_of_a_model_with_experts():
    """Oracle: by hand: attention of either stack, and the routed experts; keys and values are one module."""
    found = module_axes(MOE)
    first, lead = dict(first_layers=1), dict(layers=1, experts=8)
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    own = {module.rpartition(".")[2] for stack, module in found if stack == "dense_layers"}
    assert own == attention and len(found) == 2 * 5 + 2
    latent, heads = dict(kv_lora=10), dict(heads=4, head_dim=8 + 6)
    assert found["dense_layers", "self_attn.kv_b_proj"] == Axes(first, latent, heads)
    wide = dict(gate_up=2, mlp=16)
    assert found["moe_layers", "mlp.experts.gate_up_proj"] == Axes(lead, EMBED, wide)
    assert found["moe_layers", "mlp.experts.down_proj"] == Axes(lead, dict(mlp=16), EMBED)


def test_targets_are_named_as_users_write_them():
    """Oracle: by hand: one module in both stacks, all Linear layers, experts by their own names."""
    own = adapter_axes(MOE, ("o_proj",))
    assert [place for place in own] == [
        ("dense_layers", "self_attn.o_proj"), ("moe_layers", "self_attn.o_proj"),
    ]  # fmt: skip
    linear = adapter_axes(MOE, ("all-linear",))
    assert len(linear) == 10 and not any("experts" in module for _, module in linear)
    both = adapter_axes(MOE, ("all-linear", "experts.down_proj"))
    assert both.keys() - linear.keys() == {("moe_layers", "mlp.experts.down_proj")}
    with pytest.raises(ValueError, match="targets=\\[\\] trains nothing"):
        adapter_axes(MOE, ())
    for config, target in ((MOE, "gate_proj"), (GQA, "experts.down_proj"), (GQA, "o_prj")):
        with pytest.raises(ValueError, match=f"'{target}' is not a module of this model"):
            adapter_axes(config, ("all-linear", target))


def test_a_pair_of_matrices_has_the_modules_axes_and_the_rank():
    """Oracle: by hand: rank and latents are whole."""
    axes = Axes(dict(layers=2), dict(kv_lora=10), dict(heads=4, head_dim=14))
    assert matrix_axes(axes, 3) == {
        "lora_a": [("layers", 2), (None, 10), (None, 3)],
        "lora_b": [("layers", 2), (None, 3), ("heads", 4), ("head_dim", 14)],
    }


def test_a_new_adapter_is_uniform_within_the_root_of_its_inputs_and_changes_nothing():
    """Oracle: by hand, as peft's: 1 / sqrt(24) for an input of 24, and for attention's output of 4 x 6."""
    settings = AdapterSettings(rank=16, alpha=4.0, targets=("q_proj", "o_proj"))
    own = nn.unbox(init_adapter(GQA, settings, jax.random.key(0)))["dense_layers"]
    shapes = {"self_attn.q_proj": ((24,), (4, 6)), "self_attn.o_proj": ((4, 6), (24,))}
    for module, (inputs, outputs) in shapes.items():
        a, b = own[module]["lora_a"], own[module]["lora_b"]
        assert a.shape == (2, *inputs, 16) and b.shape == (2, 16, *outputs) and not b.any()
        for most in (a.max(), -a.min()):
            assert 0.97 < most * 24**0.5 <= 1
    assert not np.array_equal(*(own[module]["lora_a"].ravel() for module in shapes))


def test_a_tpu_reads_the_halves_of_gate_and_up_apart():
    """Oracle: by hand: a frozen weight of four axes on a TPU; every other array as it is."""
    place = jax.NamedSharding(make_mesh(), jax.P())

    class OnTpu(jax.NamedSharding):
        device_set = (SimpleNamespace(platform="tpu"),)

    def read(name, ndim, sharding):
        leaf = SimpleNamespace(ndim=ndim, sharding=sharding, format="as it is")
        return as_read((jax.tree_util.DictKey(name),), leaf)

    tpu = OnTpu(make_mesh(), jax.P())
    assert read("gate_up", 4, tpu) == Format(Layout((0, 2, 1, 3)), tpu)
    for name, ndim, sharding in (("gate_up", 5, tpu), ("down", 4, tpu), ("gate_up", 4, place)):
        assert read(name, ndim, sharding) == "as it is"
