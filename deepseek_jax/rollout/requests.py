"""The requests of one rollout: what is asked, and the queue in which they wait.

A request is one completion of one prompt. Its number is its row in the Rollout: of n completions a prompt,
request i is for prompt i // n.
"""

import zlib
from typing import NamedTuple

import jax
import numpy as np

PROMPT_BUCKET = 16  # prompt room grows in these steps, so that few lengths compile anew


class Requests(NamedTuple):
    """n requests a prompt, whose prompts are prefilled in chunks of chunk_size.

    tokens: int32[p t], the prompts, right-padded to a bucket and with rows of padding to whole chunks.
    lengths: int32[p], at least 1. keys: typed[p n], a random stream a request.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    keys: jax.Array
    n: int
    chunk_size: int

    def chunk_of(self, request):
        """The chunk that holds a request's prompt."""
        return request // (self.n * self.chunk_size)


def make_requests(prompts, n, seed, slots):
    """Requests of prompts, lists of token ids, in chunks of as many prompts as fill the slots."""
    chunk_size = min(-(-slots // n), len(prompts))
    tokens, lengths = _padded(prompts, chunk_size)
    return Requests(tokens, lengths, _random_streams(prompts, n, seed), n, chunk_size)


class RequestQueue:
    """The requests that wait, in order: all but those done, a sequence of numbers."""

    def __init__(self, requests, done=()):
        self.requests = requests
        self.waiting = np.setdiff1d(np.arange(len(requests.keys)), done)

    def __bool__(self):
        return len(self.waiting) > 0

    def take(self, room):
        """Leave with the first requests: at most `room`, and all of one chunk. int[r]."""
        chunks = self.requests.chunk_of(self.waiting[:room])
        count = np.count_nonzero(chunks == chunks[0])
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


def _random_streams(prompts, n, seed):
    """A random stream a request, from seed, prompt and number: typed[len(prompts) * n].

    A prompt that comes twice goes on counting, so that it is not answered the same way again.
    """
    seen, numbers = {}, []
    for prompt in map(tuple, prompts):
        first = seen.get(prompt, 0)
        seen[prompt] = first + n
        numbers += range(first, first + n)
    digests = [zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts]
    digests = np.repeat(np.array(digests, np.uint32), n)
    base = jax.random.key(seed)
    fold = jax.vmap(
        lambda digest, number: jax.random.fold_in(jax.random.fold_in(base, digest), number)
    )
    return fold(digests, np.array(numbers, np.uint32))


def _padded(prompts, chunk_size):
    """Right-padded to a bucket, and to whole chunks: tokens int32[p t], lengths int32[p], at least 1."""
    lengths = [len(prompt) for prompt in prompts]
    room = -(-max(lengths) // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens = np.zeros((-(-len(prompts) // chunk_size) * chunk_size, room), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    return tokens, np.array(lengths + [1] * (len(tokens) - len(prompts)), np.int32)


def check(config, sampling, prompts, max_completion_length, n, slots):
    """Raise ValueError for requests that cannot be served: a number out of range, no prompts, or a prompt
    that is empty, out of vocabulary, or too long for max_position_embeddings.
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
