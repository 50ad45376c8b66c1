"""Where a rollout's arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel import decoding as decoding_module
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.decoding import (
    by_slot,
    decoding_axes,
    decoding_mesh,
    decoding_rules,
    heads_to_slots,
    join_halves,
    own_rows,
    own_slots,
    slots_to_heads,
    to_rollout,
)
from deepseek_jax.parallel.shard import current_rules, partition_spec, use_rules


def shard_of(function, x, mesh, heads=8, experts=1):
    """The shape of a device's part of function(x), which leaves the numbers as they are."""
    with jax.set_mesh(mesh), decoding_axes(heads, experts):
        y = jax.jit(function)(x)
    np.testing.assert_array_equal(y, x)
    return y.sharding.shard_shape(y.shape)


@pytest.mark.parametrize(
    "sizes, heads, data, fsdp",
    [
        (dict(data=2, fsdp=4), 8, 2, 4),
        (dict(data=2, fsdp=4), 6, 4, 2),
        (dict(data=1, fsdp=4, tensor=2), 4, 2, 2),
        (dict(data=1, fsdp=2, context=2, tensor=2), 8, 1, 2),
        # Six heads do not split over context and tensor together
        (dict(data=1, fsdp=2, context=2, tensor=2), 6, 2, 1),
    ],
)
def test_fsdp_splits_as_many_heads_as_there_are_and_data_takes_the_rest(sizes, heads, data, fsdp):
    """Oracle: by hand; the devices in their order, the other axes as they were."""
    mesh = make_mesh(**sizes)
    found = decoding_mesh(mesh, heads)
    assert dict(found.shape) == dict(mesh.shape) | {"data": data, "fsdp": fsdp}
    assert list(found.devices.flat) == list(mesh.devices.flat)


def test_rules_of_a_rollout_by_hand():
    """Oracle: by hand: weights split over fsdp, context and tensor where heads do, experts over those of them
    that they split over, the last first; slots over all.
    """
    mesh = make_mesh(data=1, fsdp=2, context=2, tensor=2)
    rules, model = decoding_rules(mesh, 8, 8), ("fsdp", "context", "tensor")
    batch = "slice", "pipeline", "data", "expert"
    assert rules["batch"] == batch and rules["slots"] == (*batch, *model)
    split = "heads kv_heads attention_heads index_heads queries mlp vocab latent".split()
    assert {rules[name] for name in split} == {model}
    assert rules["embed"] is None and rules["layers"] is None
    assert rules["experts"] == ("expert", "tensor", "context", "fsdp")
    assert decoding_rules(mesh, 8, 4)["experts"] == ("expert", "tensor", "context")
    assert decoding_rules(mesh, 8, 3)["experts"] == ("expert",)
    with use_rules(decoding_rules(mesh, 8, 4)):
        # The rest of the model's axes split the width of experts
        assert partition_spec(("experts", "mlp"))[1] == "fsdp"
    apart = decoding_rules(mesh, 6, 1)
    assert apart["heads"] == ("fsdp", "tensor") and "context" in apart["batch"]
    alone = decoding_rules(make_mesh(expert=2), 8, 8)
    assert alone["experts"] == ("expert",)


def test_activations_lie_by_row_by_slot_or_by_head():
    """Oracle: by hand: two devices of a batch, four of a model, of arrays of 8 rows and 8 heads."""
    mesh = make_mesh(data=2, fsdp=4)
    x = jnp.arange(8 * 3 * 8 * 5.0).reshape(8, 3, 8, 5)
    flat = x[:, 0]
    assert shard_of(own_rows, x, mesh) == (4, 3, 8, 5)
    assert shard_of(own_slots, x, mesh) == (1, 3, 8, 5)
    assert shard_of(heads_to_slots, x, mesh) == (1, 3, 8, 5)
    assert shard_of(slots_to_heads, x, mesh) == (4, 3, 2, 5)
    assert shard_of(slots_to_heads, flat, mesh) == (4, 2, 5)


def test_each_device_attends_for_its_own_slots():
    """Oracle: by hand: eight slots on eight devices."""
    with jax.set_mesh(make_mesh(data=2, fsdp=4)), decoding_axes(8, 1):
        own = jax.jit(lambda x: by_slot(lambda x: jnp.full(len(x), len(x)), x))(jnp.zeros((8, 2)))
    np.testing.assert_array_equal(own, 1)


@pytest.mark.parametrize("experts, shard", [(8, (1, 6, 4)), (2, (2, 6, 1)), (None, (8, 6, 1))])
def test_a_weight_goes_to_its_place_in_a_rollout(experts, shard):
    """Oracle: by hand: experts over all devices, over none of the model's four, and a weight without any."""
    mesh = make_mesh(fsdp=4, expert=2 if experts == 8 else 1)
    names = "experts" if experts else None, "embed", "mlp"
    x = jnp.arange((experts or 8) * 6 * 4.0).reshape(-1, 6, 4)
    assert shard_of(lambda x: to_rollout(x, names), x, mesh, experts=experts or 1) == shard
    np.testing.assert_array_equal(to_rollout(x, names), x)


def test_experts_that_take_more_axes_move_in_two_steps(monkeypatch):
    """Oracle: by hand: first along the axis of experts, the other axes on the embedding's dimension; then to
    their place. Any other weight moves in one, and so do experts that no other axis splits.
    """
    moved = []

    def record(weight, names):
        moved.append({name: current_rules()[name] for name in names if name})
        return weight

    monkeypatch.setattr(decoding_module, "constrain", record)
    names = "experts", "embed", "mlp"
    with jax.set_mesh(make_mesh(data=1, fsdp=4, expert=2)):
        for experts, given in ((8, names), (8, names[1:]), (1, names)):
            with decoding_axes(8, experts):
                assert to_rollout("weight", given) == "weight"
    own, model = {"mlp": ("fsdp", "context", "tensor")}, ("fsdp",)
    assert moved == [
        {"experts": "expert", "embed": model} | own,
        {"experts": ("expert", *model), "embed": None} | own,
        {"embed": None} | own,
        {"experts": ("expert",), "embed": None} | own,
    ]


def test_a_gated_weights_halves_are_joined_on_each_device():
    """Oracle: by hand: without a mesh gate before up; on two devices each has its share of either."""
    w = jnp.arange(2 * 2 * 4.0).reshape(2, 2, 4)
    names = "embed", "gate_up", "mlp"
    np.testing.assert_array_equal(join_halves(w, names), w.reshape(2, 8))
    with jax.set_mesh(make_mesh(data=4, fsdp=2)), decoding_axes(8, 1):
        joined = jax.jit(lambda w: join_halves(w, names))(w)
    by_device = jnp.concatenate([w[..., :2].reshape(2, 4), w[..., 2:].reshape(2, 4)], axis=-1)
    np.testing.assert_array_equal(joined, by_device)
    assert joined.sharding.shard_shape(joined.shape) == (2, 4)


def test_without_a_mesh_nothing_changes():
    """Oracle: the table itself, within decoding and after it."""
    table = {"batch": None}
    with use_rules(table):
        with decoding_axes(8, 8):
            assert current_rules() is table
        with jax.set_mesh(make_mesh()), decoding_axes(8, 8):
            assert current_rules() is not table
        assert current_rules() is table
