"""The ranking of meshes by what their collectives cost, by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from deepseek_jax.costs.chips import CHIPS, GIB
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.mesh import size_name
from launch.planning.ranking import RankedMesh, best_first, rank
from launch.planning.shards import shards
from tests.launch.planning.test_shards import (
    HIDDEN,
    LAYERS,
    LENGTH,
    ROWS,
    WHOLE,
    abstract,
    on_one_device,
)


def ranked(hbm_bytes, sizes):
    """rank of the update on the meshes of these sizes, for a v5e with so much memory."""
    chip = dataclasses.replace(CHIPS["v5e"], hbm_bytes=hbm_bytes)

    def mesh_of(axes):
        devices = jax.devices()[: int(np.prod(list(axes.values())))]
        return make_mesh(**{size_name(a): n for a, n in axes.items()}, devices=devices)

    return rank([on_one_device()], [WHOLE | each for each in sizes], mesh_of, chip)


def test_a_mesh_that_does_not_split_is_dropped_with_its_reason():
    """Oracle: by hand: 24 rows split over 8 devices, 8 experts not over 5."""
    found, dropped = ranked(2**40, [dict(fsdp=8), dict(expert=5)])
    assert [one.mesh["fsdp"] for one in found] == [8]
    (reason,) = dropped
    assert reason.endswith("has 8, not a multiple of expert=5")


def test_a_mesh_without_room_for_parameters_moments_and_gradients_is_dropped():
    """Oracle: by hand: the state takes one byte more than there is."""
    state = shards(on_one_device(), abstract(fsdp=8)).state
    (one,), dropped = ranked(state, [dict(fsdp=8)])
    assert one.state == state and not dropped
    found, (reason,) = ranked(state - 1, [dict(fsdp=8)])
    assert not found
    sizes = f"{state / GIB:.2f} GiB, of {(state - 1) / GIB:.2f} GiB of a device"
    assert reason == f"fsdp=8: the training state alone takes {sizes}"


def test_one_device_has_no_collectives():
    """Oracle: nothing is sent to itself."""
    (one,), _ = ranked(2**40, [dict()])
    assert one.collectives(1) == one.collectives(8) == 0


@pytest.mark.parametrize("count", [1, 2])
def test_collectives_add_their_bytes_over_the_link(count):
    """Oracle: by hand, for 4 devices that a switch joins: each sends three quarters of the weights, three
    times for each micro-batch; or of the weights that expert splits, and of the rows of its tokens, of 2
    experts each, there and back, forward and backward, through each MoE layer.
    """
    program, link = on_one_device(), CHIPS["v5e"].link
    (fsdp, expert), _ = ranked(2**40, [dict(fsdp=4), dict(expert=4)])
    gathered = shards(program, abstract(fsdp=4)).gathered
    weights = sum(whole for axes, whole in gathered.items() if "fsdp" in axes)
    np.testing.assert_allclose(fsdp.collectives(count), 3 * count * weights * 3 / 4 / link)
    weights = sum(whole for axes, whole in gathered.items() if "expert" in axes)
    moe_layers, tokens = LAYERS - 1, ROWS * LENGTH // 4
    sent = 2 * 2 * moe_layers * tokens * 2 * HIDDEN * 2 * 3 / 4
    sent += 3 * count * weights * 3 / 4
    np.testing.assert_allclose(expert.collectives(count), sent / link)


@pytest.mark.parametrize(("axis", "wide"), [("context", 2 * 8 * (48 + 16)), ("tensor", 4 * HIDDEN)])
def test_split_rows_and_heads_exchange_activations(axis, wide):
    """Oracle: by hand, three quarters of numbers of two bytes, for each token of a device and each layer,
    forward and backward: queries and keys of 48, values and outputs of 16, in 8 heads; or the hidden state,
    in two sums, each there and back. Devices that split heads share their tokens.
    """
    (one,), _ = ranked(2**40, [{axis: 4}])
    tokens = ROWS * LENGTH // (4 if axis == "context" else 1)
    sent = 2 * tokens * LAYERS * wide * 2 * 3 / 4
    np.testing.assert_allclose(one.exchanges, sent / CHIPS["v5e"].link)


def test_the_best_mesh_depends_on_the_number_of_micro_batches():
    """Oracle: by hand: 4 + 1 < 1 + 5 seconds, and 2 x 1 + 5 < 2 x 4 + 1; one mesh has no 4."""
    gathers = RankedMesh({}, {1, 2, 4}, state=2, gathers=4.0, exchanges=1.0)
    exchanges = RankedMesh({}, {1, 2}, state=1, gathers=1.0, exchanges=5.0)
    both = [exchanges, gathers]
    assert best_first(both, 1) == [gathers, exchanges]
    assert best_first(both, 2) == [exchanges, gathers]
    assert best_first(both, 4) == [gathers]
