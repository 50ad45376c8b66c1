"""The programs of a rollout, for a plan: what rollout.engine calls, in its sizes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import forward_flops
from deepseek_jax.costs.program import (
    GENERATION,
    SYNC,
    Held,
    Program,
    beside,
    everywhere,
    forward_work,
)
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.parallel.decoding import decoding_mesh
from deepseek_jax.rollout import decode, speculative, steps, turns
from deepseek_jax.rollout.engine import (
    batch_parts_of,
    cache_rooms,
    most_calls,
    rollout_config,
)
from deepseek_jax.rollout.kept import DTYPE
from deepseek_jax.rollout.requests import chunk_rows, prompt_room
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.rollout.weights import in_place


class Asked(NamedTuple):
    """What a rollout has to answer: `prompts` prompts, the longest of prompt_length tokens, n times each.
    keeps_routing: of rollout.completions.RolloutLog. candidates: how many it keeps of a token.
    turns: those of a conversation, of the model; 0 where completions are no conversations. What it reads
    between two of them counts as one chunk of each size, which all slots read together.
    """

    prompts: int
    prompt_length: int
    n: int = 1
    keeps_routing: bool = False
    candidates: int = 0
    turns: int = 0


def rollout_programs(
    config: ModelConfig,
    mesh: Mesh,
    options,
    asked: Asked,
    *,
    dtype: str = "float32",
    adapter: AdapterSettings | None = None,
    name: str = "",
):
    """The Programs of one rollout: [Program], each after those whose results it takes.

    options: AnswerOptions. dtype, adapter: of the parameters, see abstract_tree. name: a prefix of the
    programs' names. Caches are as large as they get, and every completion counts as the longest: both are the
    most that a rollout can need. Beside a program lie the parameters, whose copy for decoding it reads, and
    what it does not take of this copy, the slots and a chunk's prompts. Raises ValueError for drafts of a
    model that has no module for them.
    """
    if options.speculative:
        speculative.check(config)
    params = abstract_tree(config, mesh, dtype, adapter)
    if mesh.size > 1:
        mesh = decoding_mesh(mesh, config.num_attention_heads)
        config = rollout_config(config, mesh)
    slots = min(options.slots, -(-asked.prompts * asked.n // mesh.size) * mesh.size)
    parts = batch_parts_of(mesh if mesh.size > 1 else None, config)
    rollout = _Rollout(
        Decoding(config, options.speculative, asked.turns > 0),
        mesh,
        name,
        slots=slots,
        prompt_room=prompt_room(asked.prompt_length),
        longest=options.max_completion_length,
        chunk=chunk_rows(asked.prompts, asked.n, slots, parts),
        keeps_routing=asked.keeps_routing,
        candidates=asked.candidates,
        turns=asked.turns,
    )
    # Weights in int8 have no copy: what decodes is the parameters
    waiting = [] if is_quantized(params) else [Held("the parameters", params)]
    return [rollout.weights(params), *beside(rollout.served(asked), *waiting)]


class _Work(NamedTuple):
    """Fields of a Program, for a program that only moves numbers if tokens and flops are left out."""

    sizes: str
    part: str = GENERATION
    times: int = 1
    token_steps: int = 0
    tokens: int = 0
    flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Rollout:
    """The sizes of a rollout. name: a prefix of its programs' names. prompt_room, longest: tokens of the
    longest prompt and completion. chunk: the prompts that are prefilled at once. The rest is of Asked.
    """

    how: Decoding
    mesh: Mesh
    name: str
    slots: int
    prompt_room: int
    longest: int
    chunk: int
    keeps_routing: bool
    candidates: int
    turns: int

    @property
    def config(self):
        """The model's."""
        return self.how.config

    def weights(self, params):
        function, how = decode.decoding_weights, self.how
        if is_quantized(params):
            # Nothing is copied: donated, the results are the arguments
            function, how = jax.jit(in_place, static_argnums=0, donate_argnums=1), self.config
        return self._program("weights", function, (how, params), _Work("", SYNC))

    def served(self, asked: Asked):
        """The programs that read the weights, to answer what is asked."""
        requests, chunks = asked.prompts * asked.n, -(-asked.prompts // self.chunk)
        # As often as all slots are seated anew, each time for the longest
        seatings = -(-requests // self.slots)
        calls = most_calls(requests, self.slots, self.longest, chunks, turns=self.turns)
        programs = [self.empty_slots(), self.prefill(chunks), self.seat(calls.seat)]
        decode = self.decode(calls.decode, seatings * self.longest)
        programs += [*self.growth(), decode]
        texts = seatings * (self.turns - 1)
        return [*programs, *self.read(texts)] if self.turns else programs

    def prefill(self, chunks: int):
        rows, room = self.chunk, self.prompt_room
        prompts = self._numbers(rows, room), self._numbers(rows)

        def arguments(weights):
            return self.how, weights, self._tables(), *prompts

        # A prompt's last token alone needs logits, which sample the completion's first
        read = forward_work(self.config, rows, room, logits=1)
        return self._program(
            "prefill",
            decode.prefill,
            arguments,
            _Work(read.sizes, times=chunks, tokens=read.tokens, flops=read.flops),
            needs=["weights"],
            waiting=["slots"],
        )

    def empty_slots(self):
        sizes = self.slots, self.prompt_room, self.longest, self.longest
        work, more = _Work(self._sizes_of_slots()), (self._numbers(),) if self.turns else ()
        arguments = self.how, *sizes, *more
        return self._program("slots", decode.empty_slots, arguments, work, waiting=["weights"])

    def growth(self):
        """The last growth of the caches, in a list; [] where they have room from the start."""
        former = cache_rooms(self.longest)[:-1]
        if not former:
            return []

        def smaller(cache):
            shape = cache.shape[0], self.prompt_room + former[-1], *cache.shape[2:]
            return jax.ShapeDtypeStruct(shape, cache.dtype, sharding=cache.sharding)

        def arguments(slots):
            slots = self._keeping(slots)._replace(caches=jax.tree.map(smaller, slots.caches))
            return self.how, self._tables(), slots, self.longest

        grown = self._program(
            "grow",
            decode.grow,
            arguments,
            _Work(self._sizes_of_slots(), times=len(former)),
            needs=["slots"],
            waiting=["weights", "prefill"],
        )
        return [grown]

    def seat(self, calls: int):
        seats, numbers = everywhere(self.mesh, (self.slots,), bool), self._numbers(self.slots)

        def arguments(slots, prefilled):
            # New keys, which are on every device, not those of the slots
            keys = slots.keys.update(sharding=numbers.sharding)
            seating = steps.Seating(seats, numbers, numbers, keys)
            slots = self._keeping(slots)
            return *self._fixed(), slots, seating, prefilled._replace(experts=None)

        return self._program(
            "seat",
            decode.seat,
            arguments,
            _Work(self._sizes_of_slots(), times=calls),
            needs=["slots", "prefill"],
            waiting=["weights"],
        )

    def decode(self, calls: int, token_steps: int):
        def arguments(weights, slots):
            tables, ends = self._tables(), self._numbers()
            more = (self._numbers(),) if self.turns else ()
            return *self._fixed(), weights, tables, self._keeping(slots), ends, *more

        # A slot's token sees its prompt, and half of its completion on average
        seen = self.prompt_room + self.longest / 2
        flops = self.slots * forward_flops(self.config, seen)
        if self.how.drafts:
            # The last token and a draft, each with its pair in the module. One of them, or both, are gained
            flops = 2 * self.slots * forward_flops(self.config, seen, depths=1)
        work = _Work(
            self._sizes_of_slots(),
            times=calls,
            token_steps=token_steps,
            tokens=self.slots,
            flops=flops,
        )
        return self._program(
            "decode",
            decode.decode,
            arguments,
            work,
            needs=["weights", "slots"],
            waiting=["prefill"],
        )

    def read(self, times: int):
        """The programs that read what tools answer, one for each size of a chunk. times: texts of a slot."""
        return [self._read(size, times) for size in turns.CHUNKS]

    def _read(self, size, times):
        def arguments(weights, slots):
            numbers, flags = self._numbers(self.slots), everywhere(self.mesh, (self.slots,), bool)
            keys = slots.keys.update(sharding=numbers.sharding)
            own = turns.Chunk(self._numbers(self.slots, size), numbers, flags, keys, numbers)
            return self.how, weights, self._tables(), self._keeping(slots), own

        tokens = self.slots * size
        # The next turn begins with the last token, which a step of decoding runs
        keys = self.prompt_room + self.longest / 2
        flops = tokens * forward_flops(self.config, keys, logits=0.0)
        sizes = f"{self.slots:,} slots x {size}"
        work = _Work(sizes, times=times, tokens=tokens, flops=flops)
        needs = ["weights", "slots"]
        return self._program(
            f"read {size}", decode.read, arguments, work, needs=needs, waiting=["prefill"]
        )

    def _keeping(self, slots):
        """The abstract slots with room for what a rollout keeps."""
        of_experts = self.config.num_moe_layers, self.config.num_experts_per_tok

        def of_tokens(dtype, *sizes):
            shape, place = (*slots.tokens.shape, *sizes), slots.tokens.sharding
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        return slots._replace(
            experts=of_tokens(DTYPE, *of_experts) if self.keeps_routing else None,
            candidates=of_tokens(jnp.int32, self.candidates) if self.candidates else None,
        )

    def _program(self, called, function, arguments, work: _Work, *, needs=(), waiting=()):
        """A Program. called, needs, waiting: names without the prefix."""
        return Program(
            self.name + called,
            function,
            arguments,
            self.mesh,
            tokens=work.tokens,
            flops=work.flops,
            sizes=work.sizes,
            part=work.part,
            times=work.times,
            token_steps=work.token_steps,
            needs=tuple(self.name + each for each in needs),
            waiting=tuple(self.name + each for each in waiting),
        )

    def _fixed(self):
        sampling = Sampling(top_k=self.candidates, keeps_candidates=self.candidates > 0)
        return self.how, sampling, self.config.eos_ids

    def _tables(self):
        shape = self.prompt_room + self.longest, self.config.rope_dim // 2
        return (everywhere(self.mesh, shape, jnp.float32),) * 2

    def _numbers(self, *shape):
        return everywhere(self.mesh, shape, jnp.int32)

    def _sizes_of_slots(self):
        return f"{self.slots:,} slots x {self.prompt_room + self.longest:,}"
