"""Engine: a queue of requests over a fixed number of decoding slots.

Requests wait in the queue until a slot is free. A request that is seated in a slot gets a copy of
its prompt's cache, and its first token is sampled. All slots decode together, one token a step,
until one slot in SEATED_TOGETHER has ended. The completions of these slots are collected, and the
slots are free for the next requests. In this example 11 steps have run, and completions have room
for 8 tokens:

    queue    requests 5 6 7 wait. Prompts are prefilled chunk by chunk, each once for all its
             completions, when the first request of the chunk leaves the queue.

    cache    prompt room    completion room, a ring
                            0 1 2 3 4 5 6 7
    slot 0   P P P P . .    3 4 5 ^ . . 1 2    request 2 decodes: seated at step 6, it has 6 tokens
    slot 1   P P P P P P    . . . ^ . . . .    request 4 has just been seated: it has 1 token
    slot 2   P . . . . .    1 2 3 ^ . . . .    request 3 has ended with token 4: collect it

P is a token of the prompt. In a step all slots write their latest token at the same index, the ^:
11 mod 8. A slot sees its prompt and, backwards around the ring, as many of the latest indices as it
has tokens. So a request can be seated at any step, and entries of a cache move only if the ring has
to grow for a longer completion. If tokens are drafted, and in conversations, a token's index is its
position instead (slots.Decoding). DeepSeek-V4 has rings of its own (models.v4.cache).

A completion may be a conversation of several turns. Then a slot waits after each turn for the text
that follows, while the other slots decode. What is sampled does not depend on the machine's clock:
a text enters at the first pause of decoding that is at least `call_steps` token steps after the
turn ended. If the text is not there by then, the engine waits for it. If no slot decodes, the count
of steps jumps to the next text that is due.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.models.network_config import Network
from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.parallel.decoding import decoding_mesh, decoding_rules
from deepseek_jax.parallel.shard import axis_parts
from deepseek_jax.rollout import decode, kept, steps, turns
from deepseek_jax.rollout.completions import Rollout, RolloutLog
from deepseek_jax.rollout.conversations import Turn
from deepseek_jax.rollout.ended import copy_completions, fetch, on_host, padded
from deepseek_jax.rollout.requests import Requests
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding, rooms
from deepseek_jax.rollout.weights import in_place
from deepseek_jax.trees import PyTree

# Tokens of a completion that the caches have room for at first, and the factor by which this room
# grows
FIRST_ROOM, GROWTH = 2048, 4
# Seat new requests once one slot in 32 is free
SEATED_TOGETHER = 32
# Room beyond an even share of the tokens, as a fraction of it: UNEVEN for a device with one expert.
# With n experts the share varies less, by a factor of sqrt(n)
UNEVEN = 1.5


def cache_rooms(longest: int) -> list[int]:
    """Return the completion rooms that caches grow through, a list of int that ends with `longest`.

    Args:
        longest: The most tokens of a completion.
    """
    room_sizes = [min(FIRST_ROOM, longest)]
    while room_sizes[-1] < longest:
        room_sizes.append(min(GROWTH * room_sizes[-1], longest))
    return room_sizes


def ended_together(slots: int) -> int:
    """Return how many of `slots` slots must end before requests that wait are seated."""
    return max(slots // SEATED_TOGETHER, 1)


class Calls(NamedTuple):
    """How often a rollout calls the programs seat and decode."""

    seat: int
    decode: int


def most_calls(requests: int, slots: int, longest: int, chunks: int, *, turns: int = 0) -> Calls:
    """Return the most Calls that a rollout can need.

    `decode` returns each time the caches have to grow, each time enough slots have ended while
    requests wait, and at the end. In conversations it returns for each turn that ends and each text
    that is due. `seat` is called when a slot is free, and seats requests of one chunk.

    Args:
        longest: The most tokens of a completion.
        chunks: The number of chunks of prompts.
        turns: The model's turns of a conversation; 0 for single turns.
    """
    num_growths, num_waiting = len(cache_rooms(longest)) - 1, max(requests - slots, 0)
    if turns:
        return Calls(chunks + num_waiting, num_growths + requests * (2 * turns - 1))
    num_waits = -(-num_waiting // ended_together(slots))
    return Calls(chunks + num_waits + num_growths, num_growths + num_waits + 1)


def rollout_config(config: Network, mesh: Mesh | None) -> Network:
    """Return the config with a bounded buffer for the tokens of experts.

    Without a mesh or without experts, the config is unchanged.

    Args:
        mesh: From rollout_mesh.
    """
    if mesh is None or not config.n_routed_experts:
        return config
    rules = decoding_rules(mesh, config.num_attention_heads, config.n_routed_experts)
    experts_per_device = config.n_routed_experts / axis_parts(mesh, rules["experts"])
    return dataclasses.replace(config, expert_buffer=1 + UNEVEN / math.sqrt(experts_per_device))


def rollout_mesh(config: Network) -> Mesh | None:
    """Return the mesh of a rollout, made from the mesh of `jax.set_mesh`.

    It is None without such a mesh, and on a single device.
    """
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty or mesh.size == 1 else decoding_mesh(mesh, config.num_attention_heads)


def batch_parts_of(mesh: Mesh | None, config: Network) -> int:
    """Return the number of parts into which a rollout's mesh splits a batch of prompts."""
    if mesh is None:
        return 1
    rules = decoding_rules(mesh, config.num_attention_heads, config.n_routed_experts or 1)
    return axis_parts(mesh, rules["batch"])


class Engine:
    """The slots, the request in each, and the programs that fill and run them.

    A plan records these programs, see rollout.programs.

    Args:
        sampling: How tokens are drawn.
        eos_ids: Ids that end a completion.
        requests: All requests of the rollout.

    Attributes:
        resume_steps: {slot after the end of its turn: the token step at which the text that
            follows enters}; {} if completions are single turns.
        steps: Token steps of conversations so far.
        token_choices: A kept.TokenChoices; None if the rollout keeps nothing of its tokens.
    """

    def __init__(
        self,
        decoding: Decoding,
        sampling: Sampling,
        eos_ids: tuple[int, ...],
        params: PyTree,
        requests: Requests,
    ):
        self.decoding, self.requests = decoding, requests
        # The first arguments of seat and decode, which compile for their values
        self.static_arguments = decoding, sampling, eos_ids
        # The number of the chunk that was prefilled last, and its Prefilled
        self.chunk, self.prefilled = None, None
        self.token_choices: kept.TokenChoices | None = None
        self.resume_steps: dict[int, int] = {}
        self.steps = 0
        with jax.profiler.TraceAnnotation("weight_sync"):
            # Prefill needs the weights, so waiting for them costs nothing, and their time can be
            # measured
            self.weights = jax.block_until_ready(self._prepared(params))

    def _prepared(self, params):
        if is_quantized(params):
            return in_place(self.decoding.config, params)
        return self.run("weights", decode.decoding_weights, self.decoding, params)

    def run(self, name: str, program: Callable, *arguments):
        """Call a program of rollout.decode, and return its result.

        Args:
            name: The program's name in a plan.
        """
        del name
        return program(*arguments)

    def open(self, slots: int, longest: int, log: RolloutLog):
        """Create `slots` free slots, and a kept.TokenChoices if the rollout keeps anything.

        Args:
            longest: The most tokens of a completion.
            log: It says what to keep.
        """
        prompt_room = self.requests.prompt_room
        self.longest, self.longest_turn = longest, log.turn_length() or longest
        self.own_rows = log.own_rows
        slot_sizes: tuple[int | np.int32, ...] = slots, prompt_room, self.first_room(), longest
        if self.decoding.turns:
            slot_sizes += (np.int32(self.longest_turn),)
            # By slot: the length of the conversation at the start of the current turn, and the
            # number of the turn
            self.turn_starts, self.turn = np.zeros(slots, int), np.zeros(slots, int)
            fold = jax.jit(jax.vmap(jax.random.fold_in))
            self.fold: Callable[[jax.Array, np.ndarray], jax.Array] = fold
        self.state = self.run("slots", decode.empty_slots, self.decoding, *slot_sizes)
        total_room = prompt_room + longest
        self.tables = self.run("tables", decode.rotations, self.decoding.config, total_room)
        # -1: the slot is free
        self.request_in = np.full(slots, -1)
        if log.keeps_routing or log.keeps_candidates:
            self.state, self.token_choices = kept.add_places(
                *self.static_arguments[:2], log, self.state, self.requests
            )

    def first_room(self) -> int:
        """Return the completion room that the caches have at first."""
        return cache_rooms(self.longest)[0]

    @property
    def is_busy(self) -> bool:
        """True if any slot has a request."""
        return bool((self.request_in >= 0).any())

    def free_slots(self) -> np.ndarray:
        """Return the numbers of the free slots: int[s]."""
        return np.flatnonzero(self.request_in < 0)

    def seat(self, requests: np.ndarray, free: np.ndarray):
        """Seat requests in free slots, and sample their first tokens.

        Args:
            requests: int[r], the numbers of requests of one chunk.
            free: int[s], free slots. The requests get the first r of them.
        """
        chunk = self.requests.chunk_of(requests[0])
        if chunk != self.chunk:
            self._prefill(chunk)
        seats = free[: len(requests)]
        self.request_in[seats] = requests
        # All arrays have an entry for every slot, however many requests are seated, so that `seat`
        # compiles once
        is_seated = np.isin(np.arange(len(self.request_in)), seats)
        # The other slots keep their state, so the values of any request will do for them
        request = np.where(is_seated, self.request_in, 0)
        row = self.requests.row_of[request]
        row_in_chunk = np.where(is_seated, row - chunk * self.requests.chunk_size, 0)
        lengths, keys = self.requests.lengths[row], self.requests.keys[request]
        seating = steps.Seating(is_seated, row_in_chunk, lengths, keys)
        self.state = self.run(
            "seat", decode.seat, *self.static_arguments, self.state, seating, self.prefilled
        )
        if self.decoding.turns:
            self.turn_starts[seats] = self.turn[seats] = 0

    def _prefill(self, chunk):
        """Run a chunk's prompts. Their caches replace the caches of the previous chunk."""
        # Free the previous chunk's caches before the new ones are computed
        self.prefilled = None
        chunk_arrays = self.requests.chunk(chunk)
        arguments = self.decoding, self.weights, self.tables, *chunk_arrays
        prefilled = self.run("prefill", decode.prefill, *arguments)
        self.prefilled, self.chunk = prefilled._replace(experts=None), chunk
        if self.token_choices is not None:
            first_row = np.int32(chunk * self.requests.chunk_size)
            self.token_choices = kept.put_prompts(
                self.decoding, self.token_choices, prefilled.experts, first_row
            )

    def _make_room(self, tokens):
        """Grow the caches to hold completions of `tokens` tokens, if any can be that long."""
        needed_room = min(tokens, self.longest)
        if needed_room > rooms(self.tables, self.state)[1]:
            self._grow(next(size for size in cache_rooms(self.longest) if size >= needed_room))

    def _grow(self, room):
        self.state = self.run("grow", decode.grow, self.decoding, self.tables, self.state, room)

    def decode(self, wanted: bool):
        """Sample token after token until slots have ended.

        Args:
            wanted: True if requests wait. Then it returns after some slots have ended, else after
                all. In conversations it ignores this, and returns after some turns have ended or
                when a text is due.
        """
        if self.decoding.turns:
            self._decode_turns()
            return
        if self._may_grow:
            self._make_room(on_host(self.state.length)[self.request_in >= 0].max() + 1)
        # Each seating costs a call, and an empty slot costs some steps: seat a share of the slots
        # at a time
        self._decode(ended_together(len(self.request_in)) if wanted else len(self.request_in))

    def _decode_turns(self):
        ended, lengths = on_host((self.state.ended, self.state.length))
        if ended.all():
            self.steps = min(self.resume_steps.values())
            return
        if self._may_grow:
            self._make_room(lengths[~ended].max() + 1)
        # Run no more steps than remain until the next text is due
        remaining_steps = (
            min(self.resume_steps.values(), default=np.iinfo(np.int32).max) - self.steps
        )
        step_before = int(self.state.step)
        self._decode(ended_together(len(self.request_in)), remaining_steps)
        self.steps += int(self.state.step) - step_before

    @property
    def _may_grow(self):
        """True if the caches have less room than the longest completion needs."""
        return rooms(self.tables, self.state)[1] < self.longest

    def _decode(self, *limits):
        """Call the program decode.

        Args:
            limits: Its argument ends, and in conversations also count.
        """
        arguments = (
            *self.static_arguments,
            self.weights,
            self.tables,
            self.state,
            *map(np.int32, limits),
        )
        self.state = self.run("decode", decode.decode, *arguments)

    def decode_one(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample one more token in every slot that has not ended, and return latest().

        Args:
            length: The most tokens that a completion has before this step.
        """
        self._make_room(length)
        self._decode(len(self.request_in), 1)
        return self.latest()

    def latest(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every slot's latest token, int32[b], and whether the slot has ended, bool[b]."""
        return on_host((self.state.last_token, self.state.ended))

    def exchanged(self) -> tuple[int, float]:
        """Return the exchanges and exchange_rounds of a RolloutLog."""
        rounds = float(on_host(self.state.rounds).mean())
        return int(self.state.step) * self.decoding.config.num_moe_layers if rounds else 0, rounds

    def ended(self) -> np.ndarray:
        """Return the slots with a completion or a turn that has just ended: int[e].

        A slot that waits for the text after its turn is not among them.
        """
        # A free slot has ended=True as well
        ended = on_host(self.state.ended) & (self.request_in >= 0)
        ended[list(self.resume_steps)] = False
        return np.flatnonzero(ended)

    def turns_of(self, slots: np.ndarray) -> dict[int, Turn]:
        """Return {slot: the Turn that has ended in it} for these slots, int[e]."""
        if not len(slots):
            return {}
        # Every process gets the tokens: the one that runs the conversation may not own its slot
        ended, turn_by_slot = fetch(self.decoding, self.state, slots), {}
        lengths = (ended.numbers.sampled + ended.numbers.read).tolist()
        for i, slot in enumerate(slots.tolist()):
            ids = ended.tokens.ids[i, self.turn_starts[slot] : lengths[i]].tolist()
            row, stopped = int(self.request_in[slot]), bool(ended.numbers.stopped[i])
            turn_by_slot[slot] = Turn(row, ids, stopped, lengths[i])
        return turn_by_slot

    def read(self, texts: dict[int, list[int]]):
        """Let slots read texts and begin their next turns.

        Args:
            texts: {slot: the ids that it reads}.
        """
        slots = np.array(sorted(texts))
        self.turn[slots] += 1
        lengths = on_host(self.state.length).astype(int)
        self.turn_starts[slots] = [lengths[slot] + len(texts[slot]) for slot in slots]
        self._make_room(self.turn_starts[slots].max() + 1)
        remaining_texts = {slot: texts[slot] for slot in slots}
        while remaining_texts:
            chunk_sizes = {slot: turns.chunk_of(len(ids)) for slot, ids in remaining_texts.items()}
            size = max(chunk_sizes.values())
            current_texts = {
                slot: ids for slot, ids in remaining_texts.items() if chunk_sizes[slot] == size
            }
            self._read(current_texts, size)
            remaining_texts = remaining_texts | {
                slot: ids[size:] for slot, ids in current_texts.items()
            }
            remaining_texts = {slot: ids for slot, ids in remaining_texts.items() if ids}

    def _read(self, texts, size):
        """Let slots read the first `size` ids of their texts."""
        num_slots = len(self.request_in)
        tokens, counts = np.zeros((num_slots, size), np.int32), np.zeros(num_slots, np.int32)
        resumes = np.zeros(num_slots, bool)
        for slot, ids in texts.items():
            chunk_ids = ids[:size]
            tokens[slot, : len(chunk_ids)], counts[slot] = chunk_ids, len(chunk_ids)
            resumes[slot] = len(chunk_ids) == len(ids)
        keys = self.requests.keys[np.maximum(self.request_in, 0)]
        limit = np.minimum(self.turn_starts + self.longest_turn, self.longest).astype(np.int32)
        chunk = turns.Chunk(tokens, counts, resumes, self.fold(keys, self.turn), limit)
        arguments = self.decoding, self.weights, self.tables, self.state, chunk
        self.state = self.run(f"read {size}", decode.read, *arguments)

    def collect(self, result: Rollout, slots: np.ndarray) -> np.ndarray:
        """Copy the completions of slots to their rows of a Rollout, and free the slots.

        Args:
            result: The Rollout.
            slots: int[e].

        Returns:
            The rows, int[e].

        Raises:
            NotFinite: As copy_completions does.
        """
        rows = self.request_in[slots]
        if len(slots):
            copy_completions(result, rows, fetch(self.decoding, self.state, slots, self.own_rows))
            self.request_in[slots] = -1
            if self.token_choices is not None:
                pairs = padded(slots), padded(rows)
                self.token_choices = kept.put_completions(
                    self.decoding, self.token_choices, self.state, *pairs
                )
        return rows
