"""Where rows go and come back to, against lists of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.parallel.trip import plan_trip, whole_blocks

RNG = np.random.default_rng(0)


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


@pytest.mark.parametrize("shards, held, block", [(1, 3, 4), (3, 2, 4), (8, 1, 2)])
def test_each_experts_rows_begin_with_a_block_of_their_own(shards, held, block):
    """Oracle: lists of rows in Python: on every device each expert's rows, in the order of senders, after
    whole blocks of the experts before it; and all return to where they were.
    """
    count = RNG.integers(0, 6, (shards, shards * held))
    trips = [plan_trip(count[d], jnp.asarray(count), d, block) for d in range(shards)]
    sent = [
        [(d, e, n) for e in range(shards * held) for n in range(count[d, e])] for d in range(shards)
    ]
    room = block * held * (6 * shards // block + 1)
    windows = [jax.tree.map(np.asarray, trip.window(0, room)) for trip in trips]
    got = [[None] * room for _ in range(shards)]
    for d, ((begins, sizes, places, _), _, _) in enumerate(windows):
        for e, (begin, size, place) in enumerate(zip(begins, sizes, places, strict=True)):
            got[e // held][place : place + size] = sent[d][begin : begin + size]
    back = [[None] * len(rows) for rows in sent]
    for d, (_, (begins, sizes, places, _), rows_per_expert) in enumerate(windows):
        wanted = []
        for e in range(d * held, (d + 1) * held):
            rows = [(s, e, n) for s in range(shards) for n in range(count[s, e])]
            assert rows_per_expert[e % held] == len(rows)
            wanted += rows + [None] * (-len(rows) % block)
        assert got[d] == wanted + [None] * (room - len(wanted))
        for z, (begin, size, place) in enumerate(zip(begins, sizes, places, strict=True)):
            back[z // held][place : place + size] = got[d][begin : begin + size]
    assert back == sent
    assert all(
        int(trip.most) == count.reshape(shards, shards, held).sum((0, 2)).max() for trip in trips
    )


def test_numbers_of_rows_are_rounded_up_to_whole_blocks():
    """Oracle: by hand."""
    assert whole_blocks(np.array([0, 1, 4, 5]), 4).tolist() == [0, 4, 4, 8]


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
