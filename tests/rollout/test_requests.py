"""The queue of a rollout's requests, by hand."""

import jax
import numpy as np
import pytest

from deepseek_jax.rollout.requests import (
    RequestQueue,
    check,
    check_slots,
    chunk_rows,
    make_requests,
)
from deepseek_jax.rollout.sampling import Sampling
from tests.tiny import CONFIGS, VOCAB

PROMPTS = [[1], [2, 3], [4], [5], [6]]


def taken(slots, done, rooms):
    """What leaves the queue of two requests a prompt as so many slots come free, until nothing waits."""
    queue, found = RequestQueue(make_requests(PROMPTS, 2, 0, slots), done), []
    for room in rooms:
        assert queue
        found.append(queue.take(room).tolist())
    assert not queue
    return found


@pytest.mark.parametrize(
    "slots, done, rooms, expected",
    [
        # Chunks of two prompts, four requests: the third holds one prompt
        (4, (), (4, 1, 2, 4, 4), [[0, 1, 2, 3], [4], [5, 6], [7], [8, 9]]),
        (4, (0, 2, 3, 4, 5, 6, 7), (4, 4), [[1], [8, 9]]),
        (100, (), (100,), [list(range(10))]),
        (1, (), (1,) * 10, [[i] for i in range(10)]),
    ],
)
def test_requests_leave_in_order_and_those_of_one_chunk_together(slots, done, rooms, expected):
    """Oracle: by hand."""
    assert taken(slots, done, rooms) == expected


def test_prompts_are_padded_to_a_bucket_and_to_whole_chunks():
    """Oracle: by hand: five prompts in chunks of two, of at most 16 tokens."""
    requests = make_requests(PROMPTS, 2, 0, slots=4)
    assert (
        requests.chunk_size == 2 and requests.tokens.shape == (6, 16) and len(requests.keys) == 10
    )
    np.testing.assert_array_equal(requests.lengths, [1, 2, 1, 1, 1, 1])
    np.testing.assert_array_equal(requests.tokens[1], [2, 3] + [0] * 14)
    np.testing.assert_array_equal(requests.chunk_of(np.arange(10)), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(requests.row_of, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])


@pytest.mark.parametrize("room", [16, 32])
def test_a_chunk_is_as_wide_as_the_room_of_prompts(room):
    """Oracle: by hand: the first of five prompts in chunks of two, and the last beside a row of padding."""
    requests = make_requests(PROMPTS, 2, 0, slots=4)
    assert requests.prompt_room == 16
    requests = requests._replace(prompt_room=room)
    for number, starts, wanted in ((0, [[1, 0], [2, 3]], [1, 2]), (2, [[6, 0], [0, 0]], [1, 1])):
        tokens, lengths = requests.chunk(number)
        assert tokens.shape == (2, room) and not tokens[:, 2:].any()
        np.testing.assert_array_equal(tokens[:, :2], starts)
        np.testing.assert_array_equal(lengths, wanted)


def test_a_repeated_prompt_continues_the_streams_of_the_first():
    """Oracle: the streams of one prompt with as many completions; another seed and prompt have others."""

    def streams(prompts, n, seed=3):
        keys = make_requests(prompts, n, seed, slots=4).keys
        return jax.random.key_data(keys).tolist()

    one = streams([[1]], 4)
    assert streams([[1], [1]], 2) == one and streams([[1], [2]], 2)[:2] == one[:2]
    others = streams([[2]], 4), streams([[1]], 4, seed=4), streams([[1, 0]], 4)
    assert len({tuple(key) for keys in (one, *others) for key in keys}) == 16


@pytest.mark.parametrize(
    "arguments, rows",
    [
        ((5, 2, 4, 16), 2),
        ((5, 2, 5, 16), 3),
        ((1, 2, 8, 16), 1),
        ((5, 2, 4, 16, 4), 4),
        ((5, 1, 5, 16, 4, 2), 8),
        # Long prompts: at most 100 tokens on each device, but one prompt in each part
        ((99, 1, 64, 48), 2),
        ((99, 1, 64, 48, 4, 8), 16),
        ((99, 1, 64, 48, 3, 8), 15),
        ((99, 1, 64, 1600, 4, 8), 4),
    ],
)
def test_a_chunk_has_prompts_that_fill_the_slots_or_the_room_for_tokens(
    arguments, rows, monkeypatch
):
    """Oracle: by hand; in whole multiples."""
    monkeypatch.setattr("deepseek_jax.rollout.requests.PREFILL_TOKENS", 100)
    assert chunk_rows(*arguments) == rows


def test_slots_split_over_the_devices():
    """Oracle: by hand."""
    check_slots(8, 4)
    with pytest.raises(ValueError, match="^slots=6 does not split over the mesh's 4 devices"):
        check_slots(6, 4)


GOOD = dict(prompts=[[0], [VOCAB - 1] * 100], max_completion_length=28, n=1, slots=1)


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, None),
        (dict(max_completion_length=1), None),
        (dict(max_completion_length=0), "^max_completion_length=0 must be at least 1"),
        (dict(n=0), "^n=0 must be"),
        (dict(slots=0), "^slots=0 must be"),
        (dict(prompts=[]), "^prompts is empty"),
        (dict(prompts=[[1], []]), "^prompt 1 is empty"),
        (dict(max_completion_length=29), "^prompt 1 has 100 tokens; .*=128 less .*=29 allows 99"),
        (dict(prompts=[[-1]]), "^prompt 0 holds ids outside 0..49"),
        (dict(prompts=[[0, VOCAB]]), "^prompt 0 holds ids outside 0..49"),
    ],
)
def test_what_no_rollout_can_do_is_refused(change, words):
    """Oracle: by hand, at the last value that is possible and the first that is not."""
    arguments = CONFIGS["gqa"], Sampling(), *(GOOD | change).values()
    if words is None:
        return check(*arguments)
    with pytest.raises(ValueError, match=words):
        check(*arguments)


@pytest.mark.parametrize(
    "sampling, is_possible",
    [
        (Sampling(0.0), True),
        (Sampling(-0.1), False),
        (Sampling(float("nan")), False),
        (Sampling(top_p=1.0), True),
        (Sampling(top_p=1.1), False),
        (Sampling(top_p=0.0), False),
        (Sampling(top_k=7), True),
        (Sampling(top_k=8), False),
        (Sampling(top_k=-1), False),
    ],
)
def test_the_ranges_of_sampling_end_where_they_say(sampling, is_possible):
    """Oracle: by hand, of seven tokens."""
    if is_possible:
        sampling.check(7)
    else:
        with pytest.raises(ValueError, match="must be"):
            sampling.check(7)
