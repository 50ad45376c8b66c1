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
be seated at any step, and a cache moves only where the ring has to grow for a longer completion. Where tokens
are drafted, and in conversations, a token's index is its position instead (slots.Decoding).

A completion is a conversation of one turn. Where there are more, a slot whose turn has ended waits for the
text that follows, while the others decode. What is sampled does not depend on the clock of the machine: a
text enters at the first pause of decoding at least `call_steps` token steps after the turn ended, and the
engine waits where it is late. Where no slot decodes, the count jumps to the next text that is due.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.parallel.decoding import decoding_mesh, decoding_rules
from deepseek_jax.parallel.shard import axis_parts
from deepseek_jax.rollout import decode, kept, steps, turns
from deepseek_jax.rollout.completions import (
    check_finite,
    copy_completions,
    of_slots,
    on_host,
    padded,
)
from deepseek_jax.rollout.conversations import Turn
from deepseek_jax.rollout.requests import Requests
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding, rooms
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
    """How often a rollout calls two of its programs."""

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


class Engine:
    """The slots, the request in each, and the programs that fill and run them. A plan records these
    (rollout.programs).

    due: slot whose turn has ended -> the token step at which the text that follows enters; {} where
    completions are single turns. steps: token steps of conversations so far.
    """

    def __init__(
        self,
        how: Decoding,
        sampling: Sampling,
        eos_ids: tuple[int, ...],
        params,
        requests: Requests,
    ):
        self.how, self.fixed, self.requests = how, (how, sampling, eos_ids), requests
        # The number of the chunk that is prefilled, and its Prefilled
        self.chunk, self.prefilled = None, None
        self.kept, self.due, self.steps = None, {}, 0
        with jax.profiler.TraceAnnotation("weight_sync"):
            # Waiting costs nothing, since prefill needs them, and gives the time of this part its end
            self.weights = jax.block_until_ready(self._prepared(params))

    def _prepared(self, params):
        if is_quantized(params):
            return in_place(self.how.config, params)
        return self.run("weights", decode.decoding_weights, self.how, params)

    def run(self, name: str, program, *arguments):
        """What a program of rollout.decode returns. name: in a plan."""
        del name
        return program(*arguments)

    def open(self, slots, longest, log):
        """Make `slots` free slots for completions of up to `longest` tokens, and a kept.Kept of what the
        RolloutLog says to keep.
        """
        prompt_room = self.requests.prompt_room
        self.longest, self.longest_turn = longest, log.turn_length() or longest
        sizes = slots, prompt_room, self.first_room(), longest
        if self.how.turns:
            sizes += (np.int32(self.longest_turn),)
            # By slot: the length of the conversation at the start of its turn, and the number of the turn
            self.began, self.turn = np.zeros(slots, int), np.zeros(slots, int)
            self.fold = jax.jit(jax.vmap(jax.random.fold_in))
        self.state = self.run("slots", decode.empty_slots, self.how, *sizes)
        room = prompt_room + longest
        self.tables = self.run("tables", decode.rotations, self.how.config, room)
        # -1: the slot is free
        self.request_in = np.full(slots, -1)
        if log.keeps_routing or log.keeps_candidates:
            self.state, self.kept = kept.begin(*self.fixed[:2], log, self.state, self.requests)

    def first_room(self):
        """The completion room of the caches at first."""
        return cache_rooms(self.longest)[0]

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
        self.state = self.run("seat", decode.seat, *self.fixed, self.state, seating, self.prefilled)
        if self.how.turns:
            self.began[seats] = self.turn[seats] = 0

    def _prefill(self, chunk):
        """Run a chunk's prompts. Their caches replace those of the previous chunk."""
        # The former are gone before the new ones come
        self.prefilled = None
        rows = self.requests.chunk(chunk)
        arguments = self.how, self.weights, self.tables, *rows
        prefilled = self.run("prefill", decode.prefill, *arguments)
        self.prefilled, self.chunk = prefilled._replace(experts=None), chunk
        if self.kept is not None:
            first = np.int32(chunk * self.requests.chunk_size)
            self.kept = kept.put_prompts(self.how, self.kept, prefilled.experts, first)

    def _make_room(self, tokens):
        """Grow the caches to hold completions of `tokens` tokens, if any can be that long."""
        wanted = min(tokens, self.longest)
        if wanted > rooms(self.tables, self.state)[1]:
            self._grow(next(size for size in cache_rooms(self.longest) if size >= wanted))

    def _grow(self, room):
        self.state = self.run("grow", decode.grow, self.how, self.tables, self.state, room)

    def decode(self, wanted):
        """Sample token after token until every slot has ended, or, if `wanted`, some more have. Of
        conversations: until some turns have ended, or a text is due.
        """
        if self.how.turns:
            self._decode_turns()
            return
        if self._may_grow:
            self._make_room(on_host(self.state.length)[self.request_in >= 0].max() + 1)
        # Each seating costs a call, and an empty slot a few steps: seat a share of the slots at a time
        self._decode(ended_together(len(self.request_in)) if wanted else len(self.request_in))

    def _decode_turns(self):
        ended, length = on_host((self.state.ended, self.state.length))
        if ended.all():
            self.steps = min(self.due.values())
            return
        if self._may_grow:
            self._make_room(length[~ended].max() + 1)
        # At most as many steps as the next text waits
        left = min(self.due.values(), default=np.iinfo(np.int32).max) - self.steps
        before = int(self.state.step)
        self._decode(ended_together(len(self.request_in)), left)
        self.steps += int(self.state.step) - before

    @property
    def _may_grow(self):
        """Whether the caches have less room than the longest completion needs."""
        return rooms(self.tables, self.state)[1] < self.longest

    def _decode(self, *limits):
        """limits: ends, and, of conversations, count."""
        arguments = *self.fixed, self.weights, self.tables, self.state, *map(np.int32, limits)
        self.state = self.run("decode", decode.decode, *arguments)

    def decode_one(self, length):
        """Sample one more token in every slot that has not ended, after at most `length` tokens: -> (the
        latest tokens int32[b], whether each slot has ended bool[b]).
        """
        self._make_room(length)
        self._decode(len(self.request_in), 1)
        return self.latest()

    def latest(self):
        """(the latest token of every slot int32[b], whether it has ended bool[b])."""
        return on_host((self.state.last_token, self.state.ended))

    def exchanged(self):
        """(exchanges, exchange_rounds) of a RolloutLog."""
        rounds = float(on_host(self.state.rounds).mean())
        return int(self.state.step) * self.how.config.num_moe_layers if rounds else 0, rounds

    def ended(self):
        """The slots whose completions, or turns, have ended since the last call: int[e]."""
        # A free slot has ended=True as well
        ended = on_host(self.state.ended) & (self.request_in >= 0)
        ended[list(self.due)] = False
        return np.flatnonzero(ended)

    def turns_of(self, slots):
        """{slot: the Turn that has ended in it} of slots, int[e]."""
        if not len(slots):
            return {}
        state, found = of_slots(self.state, slots), {}
        for i, slot in enumerate(slots.tolist()):
            length = int(state.length[i])
            ids = state.tokens[i, self.began[slot] : length].tolist()
            row, stopped = int(self.request_in[slot]), bool(state.stopped[i])
            found[slot] = Turn(row, ids, stopped, length)
        return found

    def read(self, texts: dict[int, list[int]]):
        """Have slots read these ids, and begin their next turns."""
        slots = np.array(sorted(texts))
        self.turn[slots] += 1
        length = on_host(self.state.length).astype(int)
        self.began[slots] = [length[slot] + len(texts[slot]) for slot in slots]
        self._make_room(self.began[slots].max() + 1)
        left = {slot: texts[slot] for slot in slots}
        while left:
            sizes = {slot: turns.chunk_of(len(ids)) for slot, ids in left.items()}
            size = max(sizes.values())
            now = {slot: ids for slot, ids in left.items() if sizes[slot] == size}
            self._read(now, size)
            left = left | {slot: ids[size:] for slot, ids in now.items()}
            left = {slot: ids for slot, ids in left.items() if ids}

    def _read(self, texts, size):
        """Have slots read the first `size` ids of their texts."""
        count = len(self.request_in)
        tokens, counts = np.zeros((count, size), np.int32), np.zeros(count, np.int32)
        resumes = np.zeros(count, bool)
        for slot, ids in texts.items():
            own = ids[:size]
            tokens[slot, : len(own)], counts[slot] = own, len(own)
            resumes[slot] = len(own) == len(ids)
        keys = self.requests.keys[np.maximum(self.request_in, 0)]
        limit = np.minimum(self.began + self.longest_turn, self.longest).astype(np.int32)
        chunk = turns.Chunk(tokens, counts, resumes, self.fold(keys, self.turn), limit)
        arguments = self.how, self.weights, self.tables, self.state, chunk
        self.state = self.run(f"read {size}", decode.read, *arguments)

    def collect(self, result, slots):
        """Copy the completions of slots, int[e], to their rows of result and free the slots: -> the rows."""
        rows = self.request_in[slots]
        if len(slots):
            copy_completions(result, rows, self.state, slots)
            check_finite(result, rows, self.state, slots)
            self.request_in[slots] = -1
            if self.kept is not None:
                pairs = padded(slots), padded(rows)
                self.kept = kept.put_completions(self.how, self.kept, self.state, *pairs)
        return rows
