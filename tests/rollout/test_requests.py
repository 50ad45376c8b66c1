"""The queue of a rollout's requests, by hand."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deepseek_jax.rollout.requests import (
    RequestQueue,
    _doublings,
    check,
    check_begun,
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


def test_a_completion_that_has_begun_is_a_row_of_its_own():
    """Oracle: by hand: request 0 of the first prompt has 30 tokens, so that its row has 31, and the chunk is
    twice as wide as prompts are, or as wide as may be.
    """
    requests = make_requests([[1], [2]], 2, 0, slots=4, begun={0: [5] * 30})
    np.testing.assert_array_equal(requests.row_of, [1, 0, 2, 2])
    np.testing.assert_array_equal(requests.begun, [30, 0, 0, 0])
    np.testing.assert_array_equal(requests.lengths, [1, 31, 1, 1])
    assert (requests.prompt_room, requests.chunk_size, requests.tokens.shape) == (16, 2, (4, 32))
    for number, widest, width in ((0, 99, 32), (0, 20, 20), (1, 99, 16)):
        tokens, lengths = requests.chunk(number, widest)
        assert tokens.shape == (2, width) and len(lengths) == 2
    tokens, lengths = requests.chunk(0, 99)
    np.testing.assert_array_equal(tokens[1], [1] + [5] * 30 + [0])
    # By their rows, so that those of a chunk follow each other
    assert RequestQueue(requests).take(4).tolist() == [1, 0]


def test_requests_of_one_row_keep_their_order():
    """Oracle: by hand, of a thousand."""
    requests = SimpleNamespace(keys=range(1000), row_of=np.zeros(1000, int))
    np.testing.assert_array_equal(RequestQueue(requests).waiting, np.arange(1000))


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
    [((5, 2, 4), 2), ((5, 2, 5), 3), ((1, 2, 8), 1), ((5, 2, 4, 4), 4), ((5, 1, 5, 4), 8)],
)
def test_a_chunk_has_the_prompts_that_fill_the_slots(arguments, rows):
    """Oracle: by hand; in whole multiples."""
    assert chunk_rows(*arguments) == rows


def test_a_room_doubles_until_the_length_is_in_it():
    """Oracle: by hand, of 16 tokens."""
    lengths = 1, 16, 17, 32, 33, 64, 65
    assert [_doublings(16, length) for length in lengths] == [0, 0, 1, 1, 2, 2, 3]


def test_slots_split_over_the_devices():
    """Oracle: by hand."""
    check_slots(8, 4)
    with pytest.raises(ValueError, match="^slots=6 does not split over the mesh's 4 devices"):
        check_slots(6, 4)


def test_what_has_begun_has_a_token_and_lacks_one():
    """Oracle: by hand, of completions of up to five tokens; nothing begins with drafts."""
    for ids in ([1], [1] * 4):
        check_begun({0: (ids, [0.0])}, 5, False)
    for ids in ([], [1] * 5):
        with pytest.raises(
            ValueError, match=f"row 0 has begun with {len(ids)} tokens; from 1 to 4"
        ):
            check_begun({0: (ids, [])}, 5, False)
    check_begun({}, 5, True)
    with pytest.raises(ValueError, match="speculative=True does not continue"):
        check_begun({0: ([1], [0.0])}, 5, True)


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
