"""The requests of one rollout, and the queue in which they wait for a slot.

A request is one completion of one prompt. Its number is its row in the Rollout: with n completions
a prompt, request i is for prompt i // n.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from deepseek_jax.models.network_config import Network
from deepseek_jax.rollout.sampling import Sampling

# Prompts are padded to a multiple of this length, so that few lengths are compiled
PROMPT_BUCKET = 16
# Tokens of prompts that a device reads at a time: DeepSeek-V3.2 takes up to 17 GiB for 8,192
PREFILL_TOKENS = 2**14


class Requests(NamedTuple):
    """The requests, and the prompts that they continue, which are prefilled in chunks.

    Attributes:
        tokens: int32[p t], the prompts, right-padded to whole buckets, and rows of padding up to
            whole chunks.
        lengths: int32[p], at least 1.
        row_of: int[r], the prompt of each request.
        keys: typed[r], one random stream for each request.
        prompt_room: The tokens that a prompt's cache has room for, in whole buckets.
        chunk_size: The number of prompts in a chunk.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    row_of: np.ndarray
    keys: jax.Array
    prompt_room: int
    chunk_size: int

    def chunk_of(self, request: np.ndarray) -> np.ndarray:
        """Return the number of the chunk with a request's prompt."""
        return self.row_of[request] // self.chunk_size

    def chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a chunk's tokens int32[z t], as wide as prompt_room, and its lengths int32[z]."""
        rows = slice(number * self.chunk_size, (number + 1) * self.chunk_size)
        tokens = self.tokens[rows]
        missing = self.prompt_room - tokens.shape[1]
        return np.pad(tokens, ((0, 0), (0, missing))), self.lengths[rows]


def make_requests(
    prompts: Sequence[Sequence[int]],
    n: int,
    seed: int,
    slots: int,
    parts: int = 1,
    devices: int = 1,
) -> Requests:
    """Create the Requests for n completions of each prompt.

    Args:
        prompts: Lists of token ids.
        seed: The seed of all random streams.
        parts: See chunk_rows.
        devices: See chunk_rows.
    """
    room = prompt_room(max(map(len, prompts)))
    rows = chunk_rows(len(prompts), n, slots, room, parts, devices)
    tokens, lengths = _padded(prompts, rows)
    row_of, keys = np.repeat(np.arange(len(prompts)), n), _random_streams(prompts, n, seed)
    return Requests(tokens, lengths, row_of, keys, room, rows)


def chunk_rows(
    prompts: int, n: int, slots: int, prompt_room: int, parts: int = 1, devices: int = 1
) -> int:
    """Return how many prompts a chunk has: enough to fill the slots, or fewer if they are long.

    A device gets no more tokens of a chunk than PREFILL_TOKENS, unless each part has a single
    prompt.

    Args:
        prompt_room: Tokens of a prompt, in whole buckets.
        parts: The number of parts into which the mesh splits prompts. The result is a multiple.
        devices: The number of devices.
    """
    rows = min(-(-slots // n), prompts)
    rows += -rows % parts
    with_room = devices * PREFILL_TOKENS // prompt_room
    return max(min(rows, with_room // parts * parts), parts)


class RequestQueue:
    """The requests that wait, in order.

    Args:
        done: Numbers of requests that do not have to be sampled.
    """

    def __init__(self, requests: Requests, done: Iterable[int] = ()):
        self.requests = requests
        # Sorted, so that the requests of a chunk are adjacent, as `take` requires
        self.waiting = np.setdiff1d(np.arange(len(requests.keys)), list(done))

    def __bool__(self) -> bool:
        return len(self.waiting) > 0

    def take(self, room: int) -> np.ndarray:
        """Remove and return the first requests, int[r]: at most `room`, all of one chunk."""
        # The engine has the prefilled caches of only one chunk at a time
        chunks = self.requests.chunk_of(self.waiting[:room])
        count = np.count_nonzero(chunks == chunks[0])
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


def _random_streams(prompts, n, seed):
    """Create one random stream for each request: typed[len(prompts) * n].

    A stream depends on the seed, the prompt and the number of the completion among all completions
    of this prompt. If a prompt is repeated, its count continues, so that its completions differ.
    """
    seen: dict[tuple[int, ...], int] = {}
    numbers: list[int] = []
    for prompt in map(tuple, prompts):
        first = seen.get(prompt, 0)
        seen[prompt] = first + n
        numbers += range(first, first + n)
    digests = [zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts]
    # Nothing else in the call changes a stream, so that a request's draws are the same in any batch
    base = jax.random.key(seed)
    fold = jax.vmap(
        lambda digest, number: jax.random.fold_in(jax.random.fold_in(base, digest), number)
    )
    return fold(np.repeat(np.array(digests, np.uint32), n), np.array(numbers, np.uint32))


def _padded(prompts, chunk_size):
    """Pad prompts to whole buckets and whole chunks.

    Returns:
        tokens int32[p t], and lengths int32[p], at least 1.
    """
    lengths = [len(prompt) for prompt in prompts]
    room = prompt_room(max(map(len, prompts)))
    tokens = np.zeros((-(-len(prompts) // chunk_size) * chunk_size, room), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    # Rows of padding have length 1, because prefill reads the last token at index length - 1
    return tokens, np.array(lengths + [1] * (len(tokens) - len(prompts)), np.int32)


def prompt_room(length: int) -> int:
    """Round a prompt's length up to whole PROMPT_BUCKETs, as prefill computes it."""
    return -(-length // PROMPT_BUCKET) * PROMPT_BUCKET


def check_slots(slots: int, devices: int):
    """Raise ValueError unless the slots split evenly over the devices of the mesh."""
    if slots % devices:
        raise ValueError(
            f"slots={slots} does not split over the mesh's {devices} devices, each of which decodes its own; "
            f"set slots to a multiple of {devices}"
        )


def check(
    config: Network,
    sampling: Sampling,
    prompts: Sequence[Sequence[int]],
    max_completion_length: int,
    n: int,
    slots: int,
):
    """Check the arguments of a rollout.

    Raises:
        ValueError: A setting is out of range; there are no prompts; or a prompt is empty, has an id
            outside the vocabulary, or leaves too few of max_position_embeddings.
    """
    sampling.check(config.vocab_size)
    counts = {"max_completion_length": max_completion_length, "n": n, "slots": slots}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not len(prompts):
        raise ValueError("prompts is empty; give at least one list of token ids")
    limit = config.max_position_embeddings - max_completion_length
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {index} is empty; a prompt needs at least one token, such as the bos token"
            )
        if len(prompt) > limit:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; "
                f"max_position_embeddings={config.max_position_embeddings} "
                f"less max_completion_length={max_completion_length} allows {limit}: shorten one of the two"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(
                f"prompt {index} holds ids outside 0..{config.vocab_size - 1}; is the tokenizer the model's?"
            )
