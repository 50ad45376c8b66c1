"""Prompts in, completions out: a queue of requests over a fixed number of decoding slots."""

import zlib
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.rollout import speculative as drafting
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.steps import (
    Parts,
    decode,
    decoding_weights,
    empty_slots,
    prefill,
    rotations,
    seat,
)

PROMPT_BUCKET = 16  # prompt room grows in these steps, so that few lengths compile anew


class Rollout(NamedTuple):
    """Completions, n adjacent rows a prompt, as numpy arrays.

    completion_ids: int32[b t], 0 past the end. completion_mask: bool[b t], True on sampled tokens, the end
    token too. sampler_logprobs: float32[b t], nats, 0 past the end. truncated: bool[b], no end token came.
    drafted, accepted: int32[b], tokens that speculative decoding drafted, and those of them that it kept.
    """

    completion_ids: np.ndarray
    completion_mask: np.ndarray
    sampler_logprobs: np.ndarray
    truncated: np.ndarray
    drafted: np.ndarray | None = None
    accepted: np.ndarray | None = None

    @property
    def acceptance_rate(self):
        """The share of drafted tokens that were kept; nan where none was drafted."""
        return _ratio(self.accepted.sum(), self.drafted.sum())

    @property
    def tokens_per_step(self):
        """What a completion gained by a step of the model, which drafts once; nan where none was drafted.

        The first token is left out, for it comes from the prompt's logits.
        """
        return _ratio((self.completion_mask.sum(1) - 1).sum(), self.drafted.sum())


def generate(
    config,
    params,
    prompts,
    *,
    max_completion_length,
    n=1,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    eos_ids=(),
    seed=0,
    slots=32,
    speculative=False,
    done=(),
    on_end=None,
):
    """Sample n completions of every prompt.

    prompts: lists of token ids. eos_ids end a completion. slots: how many decode at once; one that ends
    takes the next request. A prompt is prefilled once for all its completions. What is sampled depends on
    seed, the prompt and the completion's number among all of that prompt, and on nothing else in the call
    (in float32; lower precisions round differently in another batch). speculative: draft tokens with the
    model's multi-token prediction module, which changes the draws and not their distribution. done: rows that
    are not sampled, and stay empty, for a caller that has them from an earlier call. on_end(rows, Rollout) is
    told which rows have just ended, int[e], in the Rollout as it is by then. Raises ValueError on a prompt
    that is empty, out of vocabulary, or too long for max_position_embeddings, and on speculative=True without
    such a module. Returns Rollout of len(prompts) * n rows.
    """
    sampling = Sampling(float(temperature), float(top_p), top_k)
    sampling.check(config.vocab_size)
    _check(config, prompts, max_completion_length, n, slots)
    parts = Parts(decoding_weights, empty_slots, prefill, seat, decode)
    if speculative:
        drafting.check(config)
        parts = drafting.PARTS
    fixed = config, sampling, tuple(eos_ids)
    requests = len(prompts) * n
    left = np.setdiff1d(np.arange(requests), done)
    result = _empty_rollout(requests, max_completion_length)
    if not len(left):
        return result
    slots = min(slots, requests)
    chunk_size = min(
        -(-slots // n), len(prompts)
    )  # prompts prefilled together: what fills the slots
    weights = parts.decoding_weights(config, params)
    keys = _request_keys(prompts, n, seed)
    tokens, lengths = _pad_prompts(prompts, chunk_size)
    state = parts.empty_slots(config, slots, tokens.shape[1], max_completion_length)
    tables = rotations(config, tokens.shape[1] + max_completion_length)
    owner = np.full(slots, -1)  # the request in each slot
    seated, prefilled_chunk = 0, None
    while True:
        free = np.flatnonzero(owner < 0)
        if seated < len(left) and len(free):
            chunk = left[seated] // (n * chunk_size)
            if chunk != prefilled_chunk:
                rows = slice(chunk * chunk_size, (chunk + 1) * chunk_size)
                prefilled = parts.prefill(config, weights, tables, tokens[rows], lengths[rows])
                prefilled_chunk = chunk
            of_chunk = np.searchsorted(left, (chunk + 1) * n * chunk_size) - seated
            count = min(len(free), of_chunk)
            request = np.zeros(slots, int)
            request[free[:count]] = owner[free[:count]] = left[seated : seated + count]
            filled = np.isin(np.arange(slots), free[:count])
            prompt = np.where(filled, request // n - chunk * chunk_size, 0)
            state = parts.seat(
                *fixed, state, filled, prompt, *prefilled, lengths[request // n], keys[request]
            )
            seated += count
        elif (owner >= 0).any():
            state = parts.decode(*fixed, weights, tables, state, seated < len(left))
        else:
            return result
        ended = _collect(result, state, owner)
        if on_end is not None and len(ended):
            on_end(ended, result)


def _collect(result, state, owner):
    """Copy the completions of slots that have ended to their requests' rows, and free the slots: -> these."""
    slot = np.flatnonzero(_whole(state.ended) & (owner >= 0))
    if not len(slot):
        return slot
    request, length = owner[slot], _whole(state.length)[slot]
    sampled = np.arange(result.completion_ids.shape[1]) < length[:, None]
    result.completion_mask[request] = sampled
    result.completion_ids[request] = np.where(sampled, _whole(state.tokens)[slot], 0)
    result.sampler_logprobs[request] = np.where(sampled, _whole(state.logprobs)[slot], 0)
    result.truncated[request] = ~_whole(state.stopped)[slot]
    if state.drafting is not None:
        result.drafted[request] = _whole(state.drafting.drafted)[slot]
        result.accepted[request] = _whole(state.drafting.accepted)[slot]
    owner[slot] = -1
    return request


def _whole(array):
    """An array as numpy, wherever its mesh has put it: on devices of other processes too."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(lambda whole: whole, out_shardings=everywhere)(array)
    return np.asarray(array)


def _empty_rollout(requests, length):
    shape = requests, length
    return Rollout(
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.float32),
        np.zeros(requests, bool),
        np.zeros(requests, np.int32),
        np.zeros(requests, np.int32),
    )


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


def _request_keys(prompts, n, seed):
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


def _pad_prompts(prompts, chunk_size):
    """Right-padded to a bucket, and to whole chunks: tokens int32[p t], lengths int32[p], at least 1."""
    lengths = [len(prompt) for prompt in prompts]
    room = -(-max(lengths) // PROMPT_BUCKET) * PROMPT_BUCKET
    tokens = np.zeros((-(-len(prompts) // chunk_size) * chunk_size, room), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    return tokens, np.array(lengths + [1] * (len(tokens) - len(prompts)), np.int32)


def _check(config, prompts, max_completion_length, n, slots):
    for name, value in (
        ("max_completion_length", max_completion_length),
        ("n", n),
        ("slots", slots),
    ):
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
