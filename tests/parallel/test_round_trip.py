"""Where a token step's rows go and come back to, against lists of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.ragged import ragged_all_to_all
from deepseek_jax.parallel.round_trip import _room, plan_trip, sorted_choices

RNG = np.random.default_rng(0)


def test_choices_are_sorted_by_expert_then_by_their_number():
    """Oracle: numpy's stable sort, and bincount."""
    experts = RNG.integers(0, 5, (6, 3)).astype(np.int32)
    layout = sorted_choices(experts, 5)
    order = np.argsort(experts.ravel(), kind="stable")
    np.testing.assert_array_equal(layout.token_of_row, order // 3)
    np.testing.assert_array_equal(layout.row_of_choice.ravel()[order], np.arange(18))
    np.testing.assert_array_equal(layout.rows_per_expert, np.bincount(experts.ravel(), minlength=5))


@pytest.mark.parametrize("room", [3, 7, 100])
def test_windows_carry_every_row_once_to_its_expert_and_back(room):
    """Oracle: lists of rows in Python: every device's rows, in the order of experts and senders, cut into
    windows, land where a list of them says, and return to where they were.
    """
    shards, held = 4, 2
    count = RNG.integers(0, 4, (shards, shards * held))
    trips = [plan_trip(count[d], jnp.asarray(count), d) for d in range(shards)]
    sent = [
        [(d, e, n) for e in range(shards * held) for n in range(count[d, e])] for d in range(shards)
    ]
    wanted = [
        [
            (s, e, n)
            for e in range(d * held, (d + 1) * held)
            for s in range(shards)
            for n in range(count[s, e])
        ]
        for d in range(shards)
    ]
    assert all(int(trip.most) == max(map(len, wanted)) for trip in trips)
    back = [[None] * len(rows) for rows in sent]
    for first in range(0, max(map(len, wanted)), room):
        got = [[None] * room for _ in range(shards)]
        windows = [jax.tree.map(np.asarray, trip.window(first, room)) for trip in trips]
        for d, ((begins, sizes, places, _), _, _) in enumerate(windows):
            for e, (begin, size, place) in enumerate(zip(begins, sizes, places, strict=True)):
                got[e // held][place : place + size] = sent[d][begin : begin + size]
        for d, (_, (begins, sizes, places, _), rows_per_expert) in enumerate(windows):
            here = wanted[d][first : first + room]
            assert got[d][: len(here)] == here and rows_per_expert.sum() == len(here)
            assert [e % held for _, e, _ in here] == list(
                np.repeat(np.arange(held), rows_per_expert)
            )
            for z, (begin, size, place) in enumerate(zip(begins, sizes, places, strict=True)):
                back[z // held][place : place + size] = got[d][begin : begin + size]
    assert back == sent


def test_a_round_has_room_beyond_an_even_share():
    """Oracle: by hand: as much again for one expert, in registers of 16 rows; half of it for four, in
    tiles of a TPU's product, of 128 for so few.
    """
    assert [_room(share, 1) for share in (5, 8, 9)] == [16, 16, 32]
    assert [_room(share, 4) for share in (5, 8, 9)] == [8, 12, 14]
    with jax.default_device("tpu"):
        assert [_room(share, own) for share, own in ((9, 1), (9, 4), (100, 4))] == [32, 128, 256]


def test_both_sides_of_an_exchange_name_the_same_sizes():
    """Oracle: the documentation of jax.lax.ragged_all_to_all: what a device receives of each peer is what
    the peer sends.
    """
    count = RNG.integers(0, 3, (4, 8))
    windows = [plan_trip(count[d], jnp.asarray(count), d).window(2, 5) for d in range(4)]
    for way in (0, 1):
        sizes, received = (
            np.array([window[way][number] for window in windows]).reshape(4, 4, 2)
            for number in (1, 3)
        )
        np.testing.assert_array_equal(received, sizes.swapaxes(0, 1))


def test_what_a_machine_without_ragged_exchanges_gathers():
    """Oracle: the example in the documentation of jax.lax.ragged_all_to_all, on two devices."""
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    numbers = (
        [[1, 2, 2], [3, 4, 0]],
        [[0] * 4] * 2,
        [[0, 1], [0, 1]],
        [[1, 2], [1, 1]],
        [[0, 0], [1, 2]],
        [[1, 1], [2, 1]],
    )
    exchange = functools.partial(ragged_all_to_all, axis_name="data")
    place = PartitionSpec("data")
    with jax.set_mesh(mesh):
        operand, output, *plan = (
            jax.device_put(np.ravel(each), NamedSharding(mesh, place)) for each in numbers
        )
        result = jax.shard_map(exchange, in_specs=place, out_specs=place, check_vma=False)(
            operand[:, None], output[:, None], *plan
        )
    np.testing.assert_array_equal(result.reshape(2, 4), [[1, 3, 0, 0], [2, 2, 4, 0]])
