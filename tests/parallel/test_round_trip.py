"""The parts of a token step's exchange: order, room, and the collective on machines without it."""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.ragged import ragged_all_to_all
from deepseek_jax.parallel.round_trip import _room, sorted_choices

RNG = np.random.default_rng(0)


def test_choices_are_sorted_by_expert_then_by_their_number():
    """Oracle: numpy's stable sort, and bincount."""
    experts = RNG.integers(0, 5, (6, 3)).astype(np.int32)
    layout = sorted_choices(experts, 5)
    order = np.argsort(experts.ravel(), kind="stable")
    np.testing.assert_array_equal(layout.token_of_row, order // 3)
    np.testing.assert_array_equal(layout.row_of_choice.ravel()[order], np.arange(18))
    np.testing.assert_array_equal(layout.rows_per_expert, np.bincount(experts.ravel(), minlength=5))


def test_a_round_has_room_beyond_an_even_share():
    """Oracle: by hand: as much again for one expert, in registers of 16 rows; half of it for four, in
    tiles of a TPU's product, of 128 for so few.
    """
    assert [_room(share, 1) for share in (5, 8, 9)] == [16, 16, 32]
    assert [_room(share, 4) for share in (5, 8, 9)] == [8, 12, 14]
    with jax.default_device("tpu"):
        assert [_room(share, own) for share, own in ((9, 1), (9, 4), (100, 4))] == [32, 128, 256]


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
