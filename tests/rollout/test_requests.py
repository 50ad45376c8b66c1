"""The queue of a rollout's requests, by hand."""

import numpy as np
import pytest

from deepseek_jax.rollout.requests import RequestQueue, make_requests

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
