"""The programs of a rollout, for a plan: what rollout.engine calls, recorded and not run."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import forward_flops
from deepseek_jax.costs.program import (
    GENERATION,
    SYNC,
    Program,
    ResidentArrays,
    beside,
    everywhere,
    forward_work,
)
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.parallel.decoding import decoding_mesh
from deepseek_jax.rollout import speculative, turns
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.decode import Prefilled
from deepseek_jax.rollout.engine import (
    Engine,
    batch_parts_of,
    cache_rooms,
    most_calls,
    rollout_config,
)
from deepseek_jax.rollout.kept import DTYPE
from deepseek_jax.rollout.requests import Requests, chunk_rows, prompt_room
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.rollout.weights import in_place
from deepseek_jax.trees import PyTree


class Workload(NamedTuple):
    """What a rollout has to answer: `prompts` prompts, n times each.

    Attributes:
        prompts: The number of prompts.
        prompt_length: Tokens of the longest prompt.
        n: Completions of each prompt.
        keeps_routing: See rollout.completions.RolloutLog.
        candidates: The number of candidates that the rollout keeps for each token.
        turns: The model's turns of a conversation; 0 for single turns. What it reads between two
            turns counts as one chunk of each size, which all slots read together.
    """

    prompts: int
    prompt_length: int
    n: int = 1
    keeps_routing: bool = False
    candidates: int = 0
    turns: int = 0


def rollout_programs(
    config: Network,
    mesh: Mesh,
    options: AnswerOptions,
    workload: Workload,
    *,
    dtype: str = "float32",
    adapter: AdapterSettings | None = None,
    name: str = "",
) -> list[Program]:
    """Return the Programs of one rollout, in order: no program takes the result of a later one.

    Caches are as large as they get, and every completion counts as the longest: both are the most
    that a rollout can need. While a program runs, memory also holds the parameters, because
    decoding reads a copy of them. It holds this copy, the slots and a chunk's prompts too, if they
    are not arguments of the program.

    Args:
        options: How answers are sampled.
        dtype: Of the parameters, see abstract_tree.
        adapter: Of the parameters, see abstract_tree.
        name: A prefix of the programs' names.

    Raises:
        ValueError: Drafts are set, and the model has no module for them.
    """
    if options.speculative:
        speculative.check(config)
    params = abstract_tree(config, mesh, dtype, adapter)
    if mesh.size > 1:
        mesh = decoding_mesh(mesh, config.num_attention_heads)
        config = rollout_config(config, mesh)
    slots = min(options.slots, -(-workload.prompts * workload.n // mesh.size) * mesh.size)
    num_parts = batch_parts_of(mesh if mesh.size > 1 else None, config)
    # Where completions leave no room for a prompt, its own check says so
    room = prompt_room(max(workload.prompt_length, 1))
    rows = chunk_rows(workload.prompts, workload.n, slots, room, num_parts, mesh.size)
    requests = _one_chunk(room, rows)
    rollout_sizes = _Sizes(
        config, slots, requests.prompt_room, options.max_completion_length, workload
    )
    decoding = Decoding(config, options.speculative, workload.turns > 0)
    engine = _Recorded(decoding, params, requests, mesh, rollout_sizes)
    engine.call_all()
    work_by_name = rollout_sizes.works(decoding, requests.chunk_size)
    # Weights in int8 are not copied: decoding reads the parameters themselves
    held_params = [] if is_quantized(params) else [ResidentArrays("the parameters", params)]
    first_program, *other_programs = [
        dataclasses.replace(
            program,
            name=name + key,
            needs=tuple(name + other for other in program.needs),
            waiting=tuple(name + other for other in program.waiting),
            **work_by_name[key]._asdict(),
        )
        for key, program in engine.calls.items()
    ]
    return [first_program, *beside(other_programs, *held_params)]


def _one_chunk(room, rows):
    """Return the Requests of a single chunk; all chunks have its sizes."""
    tokens, lengths = np.zeros((rows, room), np.int32), np.ones(rows, np.int32)
    # A placeholder, of which the engine reads only entries
    return Requests(tokens, lengths, np.zeros(1, int), _Keys(), room, rows)  # type: ignore[arg-type]


class _Keys:
    """Placeholder for the random streams of requests: indexing it gives their shape."""

    def __getitem__(self, index):
        return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(index)))


class _ProgramWork(NamedTuple):
    """Fields of a Program. Without tokens and flops, the program only moves numbers."""

    sizes: str
    part: str = GENERATION
    times: int = 1
    token_steps: int = 0
    tokens: int = 0
    flops: float = 0.0


class _Sizes(NamedTuple):
    """The sizes of a rollout.

    Attributes:
        config: The model.
        slots: The number of slots.
        prompt_room: Tokens of the longest prompt, in whole buckets.
        longest: Tokens of the longest completion.
        workload: What the rollout has to answer.
    """

    config: Network
    slots: int
    prompt_room: int
    longest: int
    workload: Workload

    def works(self, decoding: Decoding, chunk: int) -> dict[str, _ProgramWork]:
        """Return {program's name: its _ProgramWork}.

        Args:
            chunk: The number of prompts that are prefilled at once.
        """
        workload, slots = self.workload, self.slots
        requests, chunks = workload.prompts * workload.n, -(-workload.prompts // chunk)
        calls = most_calls(requests, slots, self.longest, chunks, turns=workload.turns)
        # How often all slots are seated anew. Each time they decode for as long as the longest
        # completion takes
        seatings = -(-requests // slots)
        # A slot's token sees its prompt and, on average, half of its completion
        seen_tokens = self.prompt_room + self.longest / 2
        flops = forward_flops(self.config, seen_tokens)
        if decoding.drafts:
            # A step runs the last token and a draft, each with its pair in the module, and gains
            # one or two tokens
            flops = 2 * forward_flops(self.config, seen_tokens, depths=1)
        # Only a prompt's last token needs logits, from which the completion's first token is
        # sampled
        prompt_work = forward_work(self.config, chunk, self.prompt_room, logits=1)
        slots_text = f"{slots:,} slots x {self.prompt_room + self.longest:,}"
        return {
            "weights": _ProgramWork("", SYNC),
            "slots": _ProgramWork(slots_text),
            "prefill": _ProgramWork(
                prompt_work.sizes, times=chunks, tokens=prompt_work.tokens, flops=prompt_work.flops
            ),
            "seat": _ProgramWork(slots_text, times=calls.seat),
            "grow": _ProgramWork(slots_text, times=len(cache_rooms(self.longest)) - 1),
            "decode": _ProgramWork(
                slots_text,
                times=calls.decode,
                token_steps=seatings * self.longest,
                tokens=slots,
                flops=slots * flops,
            ),
        } | {
            f"read {size}": _ProgramWork(
                f"{slots:,} slots x {size}",
                times=seatings * (workload.turns - 1),
                tokens=slots * size,
                # No logits: the next turn begins with the last token of the text, which a step of
                # decoding runs
                flops=slots * size * forward_flops(self.config, seen_tokens, logits=0.0),
            )
            for size in turns.CHUNKS
        }


@dataclasses.dataclass(frozen=True)
class _Later:
    """Placeholder for a program's result, or a field of it, until the program is compiled.

    Attributes:
        program: The program's name.
        field: The name of the field; None for the whole result.
        room: The completion room in the caches of slots, if it is smaller than in the result.
    """

    program: str
    field: str | None = None
    room: int | None = None


class _Recorded(Engine):
    """An Engine that runs nothing and records the programs that it would call.

    Attributes:
        calls: {name: its Program, without the fields of a _ProgramWork}, in the order of calls.
    """

    def __init__(
        self, decoding: Decoding, params: PyTree, requests: Requests, mesh: Mesh, sizes: _Sizes
    ):
        self.mesh, self.sizes = mesh, sizes
        self.calls: dict[str, Program] = {}
        self.weights = self.state = self.prefilled = None
        candidates = sizes.workload.candidates
        sampling = Sampling(top_k=candidates, keeps_candidates=candidates > 0)
        super().__init__(decoding, sampling, sizes.config.eos_ids, params, requests)

    def call_all(self):
        """Call every program once, with arguments as large as they get."""
        self.open(self.sizes.slots, self.sizes.longest, RolloutLog())
        # The keys of a turn have the same shape, so nothing has to be computed
        self.fold = lambda keys, turn: keys
        self.seat(np.array([0]), self.free_slots())
        if len(rooms := cache_rooms(self.longest)) > 1:
            self.state = _Later("slots", room=rooms[-2])
            self._grow(self.longest)
        self._decode(*[0] * (1 + self.decoding.turns))
        for size in turns.CHUNKS if self.decoding.turns else ():
            self._read({0: [0] * size}, size)

    def first_room(self):
        return self.longest

    def _prepared(self, params):
        if is_quantized(params):
            # The arguments are donated and returned, so nothing is copied
            jitted_in_place = jax.jit(in_place, static_argnums=0, donate_argnums=1)
            return self.run("weights", jitted_in_place, self.decoding.config, params)
        return super()._prepared(params)

    def run(self, name, program, *arguments):
        if name == "tables":
            tables = jax.eval_shape(lambda: program(*arguments))
            return [everywhere(self.mesh, table.shape, table.dtype) for table in tables]
        arguments = jax.tree.map(self._described, arguments)
        needs = _programs_of(arguments)
        held_programs = _programs_of((self.weights, self.state, self.prefilled))
        self.calls[name] = Program(
            name,
            program,
            functools.partial(self._known, needs, arguments) if needs else arguments,
            self.mesh,
            tokens=0,
            flops=0.0,
            sizes="",
            needs=needs,
            waiting=tuple(other for other in held_programs if other not in needs),
        )
        if name == "prefill":
            return Prefilled._make(_Later(name, field) for field in Prefilled._fields)
        return _Later("weights" if name == "weights" else "slots")

    def _described(self, leaf):
        """Return an array's shape, placed on every device; return any other leaf unchanged."""
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
            return everywhere(self.mesh, leaf.shape, leaf.dtype)
        if not isinstance(leaf, np.ndarray | np.generic):
            return leaf
        # A jitted program takes numpy's int64 as int32
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return everywhere(self.mesh, leaf.shape, dtype)

    def _known(self, needs, arguments, *results):
        """Return the arguments, with the results of the programs that they need."""
        result_by_program = dict(zip(needs, results, strict=True))

        def known_leaf(leaf):
            if not isinstance(leaf, _Later):
                return leaf
            result = result_by_program[leaf.program]
            if leaf.field is not None:
                return getattr(result, leaf.field)
            return self._as_kept(result, leaf.room) if leaf.program == "slots" else result

        return jax.tree.map(known_leaf, arguments)

    def _as_kept(self, slots, room):
        """Return the abstract Slots with places for what the rollout keeps.

        Args:
            slots: The result of the program slots.
            room: The completion room of their caches, if it is smaller; else None.
        """
        workload, config = self.sizes.workload, self.sizes.config

        def token_array(dtype, *token_shape):
            shape, sharding = (*slots.tokens.shape, *token_shape), slots.tokens.sharding
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        def smaller(cache):
            shape = cache.shape[0], self.requests.prompt_room + room, *cache.shape[2:]
            return jax.ShapeDtypeStruct(shape, cache.dtype, sharding=cache.sharding)

        if room is not None:
            slots = slots._replace(caches=jax.tree.map(smaller, slots.caches))
        if workload.keeps_routing:
            expert_sizes = config.num_moe_layers, config.num_experts_per_tok
            slots = slots._replace(experts=token_array(DTYPE, *expert_sizes))
        if workload.candidates:
            slots = slots._replace(candidates=token_array(jnp.int32, workload.candidates))
        return slots


def _programs_of(tree):
    """Return the names of the programs that the _Later of a tree stand for."""
    placeholders = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, _Later))
    return tuple(dict.fromkeys(leaf.program for leaf in placeholders))
