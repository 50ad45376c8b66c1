"""Prompts in, completions out: a queue of requests over a fixed number of decoding slots.

Requests wait in the queue. One is seated in each free slot: the slot gets a copy of its prompt's cache, and
the first token is sampled. All slots decode together, a token a step, until one in SEATED_TOGETHER has ended.
Their completions are collected, and the slots are free for the next requests. Here 11 steps have run, with
room for 8 tokens:

    queue    requests 5 6 7 wait. Prompts are prefilled chunk by chunk, each once for all its completions,
             when the first request of the chunk leaves the queue.

    cache    prompt room    completion room, a ring
                            0 1 2 3 4 5 6 7
    slot 0   P P P P . .    3 4 5 ^ . . 1 2    request 2 decodes: seated at step 6, it has 6 tokens by now
    slot 1   P P P P P P    . . . ^ . . . .    request 4 has just been seated: it has 1 token
    slot 2   P . . . . .    1 2 3 ^ . . . .    request 3 has ended with token 4: collect it, free the slot

P is a token of the prompt. All slots write the token that they sampled last at one index, the ^: 11 mod 8.
A slot sees its prompt and, around the ring, as many of the latest indices as it has tokens. So a request can
be seated at any step, and a cache moves only where the ring has to grow for a longer completion.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.parallel.decoding import decoding_mesh, decoding_rules
from deepseek_jax.parallel.shard import axis_parts
from deepseek_jax.rollout import kept, steps
from deepseek_jax.rollout.completions import (
    check_finite,
    copy_completions,
    on_host,
    padded,
)
from deepseek_jax.rollout.slots import rooms
from deepseek_jax.rollout.weights import in_place

# Tokens of a completion that the caches have room for at first, and the factor by which it grows
FIRST_ROOM, GROWTH = 2048, 4
# Seat new requests once one slot in 32 is free
SEATED_TOGETHER = 32
# Room beyond an even share for a device with one expert. With n experts the share varies less, by the root
# of n
UNEVEN = 1.5


def cache_rooms(longest: int):
    """The completion rooms that caches grow through, for completions of up to longest tokens: [int]."""
    sizes = [min(FIRST_ROOM, longest)]
    while sizes[-1] < longest:
        sizes.append(min(GROWTH * sizes[-1], longest))
    return sizes


def ended_together(slots: int):
    """How many of `slots` slots end before others are seated, while requests wait."""
    return max(slots // SEATED_TOGETHER, 1)


class Calls(NamedTuple):
    """How often a rollout calls two of its steps.Parts."""

    seat: int
    decode: int


def most_calls(requests: int, slots: int, longest: int, chunks: int, *, turns: int = 0):
    """The Calls of a rollout, at most. longest: tokens of a completion. chunks: of prompts. turns: of
    conversations, 0 without.

    `decode` returns for each growth of the caches, each time that slots have ended together while requests
    wait, and at the end; of conversations for each turn that ends and each text that is due. `seat` follows
    where a slot is free, and seats requests of one chunk.
    """
    growths, waiting = len(cache_rooms(longest)) - 1, max(requests - slots, 0)
    if turns:
        return Calls(chunks + waiting, growths + requests * (2 * turns - 1))
    waits = -(-waiting // ended_together(slots))
    return Calls(chunks + waits + growths, growths + waits + 1)


def rollout_config(config, mesh):
    """The config with a bounded buffer for experts' tokens. mesh: of rollout_mesh."""
    if mesh is None or not config.n_routed_experts:
        return config
    rules = decoding_rules(mesh, config.num_attention_heads, config.n_routed_experts)
    held = config.n_routed_experts / axis_parts(mesh, rules["experts"])
    return dataclasses.replace(config, expert_buffer=1 + UNEVEN / math.sqrt(held))


def rollout_mesh(config):
    """The mesh of a rollout on that of `jax.set_mesh`; None without one, or with a single device."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty or mesh.size == 1 else decoding_mesh(mesh, config.num_attention_heads)


def batch_parts_of(mesh, config):
    """Into how many parts a rollout's mesh splits a batch of prompts."""
    if mesh is None:
        return 1
    rules = decoding_rules(mesh, config.num_attention_heads, config.n_routed_experts or 1)
    return axis_parts(mesh, rules["batch"])


class Way(NamedTuple):
    """How a rollout decodes. parts: steps.Parts. engine: Engine, or a class from it. serve: of generation."""

    parts: steps.Parts
    engine: type
    serve: Callable


class Engine:
    """The slots, the request in each, and the compiled parts that fill and run them."""

    def __init__(self, parts, fixed, params, requests):
        """parts: steps.Parts. fixed: (config, sampling, eos_ids), for which they are compiled."""
        self.parts, self.fixed, self.config, self.requests = parts, fixed, fixed[0], requests
        prepare = in_place if is_quantized(params) else parts.decoding_weights
        with jax.profiler.TraceAnnotation("weight_sync"):
            # Waiting costs nothing, since prefill needs them, and gives the time of this part its end
            self.weights = jax.block_until_ready(prepare(self.config, params))
        # The number of the chunk that is prefilled, and its (caches, logits)
        self.chunk, self.prefilled = None, None
        self.kept = None

    def open(self, slots, max_completion_length, log):
        """Make `slots` free slots, and a kept.Kept of what the RolloutLog says to keep."""
        prompt_room = self.requests.prompt_room
        first = cache_rooms(max_completion_length)[0]
        sizes = slots, prompt_room, first, max_completion_length
        self.state = self.empty(*sizes)
        self.tables = steps.rotations(self.config, prompt_room + max_completion_length)
        # -1: the slot is free
        self.request_in = np.full(slots, -1)
        if log.keeps_routing or log.keeps_candidates:
            self.state, self.kept = kept.begin(*self.fixed[:2], log, self.state, self.requests)

    def empty(self, *sizes):
        """slots.empty_slots of these sizes."""
        return self.parts.empty_slots(self.config, *sizes)

    @property
    def is_busy(self):
        """Whether any slot has a request."""
        return bool((self.request_in >= 0).any())

    def free_slots(self):
        """The numbers of the free slots, int[s]."""
        return np.flatnonzero(self.request_in < 0)

    def seat(self, requests, free):
        """Give requests int[r], of one chunk, the first slots of free, and sample their first tokens."""
        chunk = self.requests.chunk_of(requests[0])
        if chunk != self.chunk:
            self._prefill(chunk)
        seats = free[: len(requests)]
        self.request_in[seats] = requests
        # All arrays are as wide as the slots, however many are seated, so that `seat` compiles once
        filled = np.isin(np.arange(len(self.request_in)), seats)
        # The other slots keep their state, so any request will do for them
        request = np.where(filled, self.request_in, 0)
        row = self.requests.row_of[request]
        row_in_chunk = np.where(filled, row - chunk * self.requests.chunk_size, 0)
        lengths, keys = self.requests.lengths[row], self.requests.keys[request]
        seating = steps.Seating(filled, row_in_chunk, lengths, keys)
        self.state = self.parts.seat(*self.fixed, self.state, seating, self.prefilled)

    def _prefill(self, chunk):
        """Run a chunk's prompts. Their caches replace those of the previous chunk."""
        # The former are gone before the new ones come
        self.prefilled = None
        rows = self.requests.chunk(chunk)
        prefilled = self.parts.prefill(self.config, self.weights, self.tables, *rows)
        *prefilled, experts = prefilled
        self.prefilled = tuple(prefilled)
        self.chunk = chunk
        if self.kept is not None:
            first = np.int32(chunk * self.requests.chunk_size)
            self.kept = kept.put_prompts(self.config, self.kept, experts, first)

    def _make_room(self, tokens):
        """Grow the caches to hold completions of `tokens` tokens, if any can be that long."""
        room, longest = rooms(self.tables, self.state)[1], self.state.tokens.shape[1]
        wanted = min(tokens, longest)
        if wanted > room:
            larger = next(size for size in cache_rooms(longest) if size >= wanted)
            self.state = self.parts.grow(self.config, self.tables, self.state, larger)

    def decode(self, wanted):
        """Sample token after token until every slot has ended, or, if `wanted`, some more have."""
        if rooms(self.tables, self.state)[1] < self.state.tokens.shape[1]:
            self._make_room(on_host(self.state.length)[self.request_in >= 0].max() + 1)
        # Each seating costs a call, and an empty slot a few steps: seat a share of the slots at a time
        ends = ended_together(len(self.request_in)) if wanted else len(self.request_in)
        self.state = self.parts.decode(*self.fixed, self.weights, self.tables, self.state, ends)

    def decode_one(self, length):
        """Sample one more token in every slot that has not ended, after at most `length` tokens: -> (the
        latest tokens int32[b], whether each slot has ended bool[b]).
        """
        self._make_room(length)
        self.state = steps.decode_one(*self.fixed, self.weights, self.tables, self.state)
        return self.latest()

    def latest(self):
        """(the latest token of every slot int32[b], whether it has ended bool[b])."""
        return on_host((self.state.last_token, self.state.ended))

    def exchanged(self):
        """(exchanges, exchange_rounds) of a RolloutLog."""
        rounds = float(on_host(self.state.rounds).mean())
        return int(self.state.step) * self.config.num_moe_layers if rounds else 0, rounds

    def collect(self, result):
        """Copy the completions that have ended to their rows of result and free their slots: -> the rows."""
        # A free slot has ended=True as well
        slots = np.flatnonzero(on_host(self.state.ended) & (self.request_in >= 0))
        return self.collect_slots(result, slots)

    def collect_slots(self, result, slots):
        """`collect` of these slots, int[e]."""
        rows = self.request_in[slots]
        if len(slots):
            copy_completions(result, rows, self.state, slots)
            check_finite(result, rows, self.state, slots)
            self.request_in[slots] = -1
            if self.kept is not None:
                pairs = padded(slots), padded(rows)
                self.kept = kept.put_completions(self.config, self.kept, self.state, *pairs)
        return rows
