"""What a plan says of a rollout is what the engine calls: its parts' arguments against the Programs'."""

import contextlib
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import forward_flops
from deepseek_jax.costs.program import GENERATION, SYNC, argument_bytes
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import AnswerOptions, decode, engine, generate, programs
from deepseek_jax.rollout.programs import Workload, rollout_programs
from launch.planning.compiled import compile_programs
from tests.costs.products import matmul_flops
from tests.recipes.small import one_device
from tests.tiny import tiny_model

PROMPTS = [list(range(1, 4 + i)) for i in range(5)]
LONGEST, N, SLOTS = 6, 3, 8
# The program of a plan and the engine's function
PARTS = {
    "weights": "decoding_weights",
    "prefill": "prefill",
    "slots": "empty_slots",
    "seat": "seat",
    "decode": "decode",
}


def eight_devices():
    return make_mesh(data=1, fsdp=2, expert=2, tensor=2)


def leaves_of(arguments):
    """The arrays among the arguments of a jitted function; others are static."""
    return [
        x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array | np.ndarray | np.generic)
    ]


def shapes_of(arguments):
    return [x for x in jax.tree.leaves(arguments) if isinstance(x, jax.ShapeDtypeStruct)]


def held_by_one(arrays):
    """The bytes that the first device has of them. To ask an array for its shards would make more of them."""
    first, held = jax.devices()[0], 0
    for array in arrays:
        if first in array.sharding.device_set:
            shape = array.sharding.shard_shape(array.shape)
            held += math.prod(shape) * array.dtype.itemsize
    return held


class Call(NamedTuple):
    """Of a part of the engine: its static arguments, the shapes, dtypes and shardings of the others, and the
    bytes of all arrays that one device has by then.
    """

    static: list
    described: list
    held: int


@contextlib.contextmanager
def recorded():
    """{name of a program: [a Call]} of what runs within."""
    calls = {name: [] for name in (*PARTS.values(), "grow")}
    # What tests share is no part of a rollout
    for kind in ("gqa", "mla_moe"):
        tiny_model(kind)
    # Held, or a new array could have the id of one that is gone
    before = {id(array): array for array in jax.live_arrays()}

    def recording(name, part):
        def record(*arguments):
            # Not the arrays: a part may donate them
            described = [
                jax.ShapeDtypeStruct(
                    # numpy's int64 goes in as int32
                    x.shape,
                    jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True),
                    sharding=getattr(x, "sharding", None),
                )
                for x in leaves_of(arguments)
            ]
            static = [x for x in arguments if not leaves_of(x)]
            new = [array for array in jax.live_arrays() if id(array) not in before]
            calls[name].append(Call(static, described, held_by_one(new)))
            return part(*arguments)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(decode, name, recording(name, getattr(decode, name)))
        yield calls


def engines_calls(kind, mesh):
    """(config, calls) of a real rollout of tiny parameters."""
    config, params = tiny_model(kind)
    places = jax.tree.map(lambda x: x.sharding, abstract_tree(config, mesh))
    sizes = dict(max_completion_length=LONGEST, n=N, slots=SLOTS, speculative=kind == "mtp")
    with recorded() as calls, jax.set_mesh(mesh):
        params = jax.tree.map(lambda x, place: jax.device_put(np.array(x), place), params, places)
        generate(config, params, PROMPTS, eos_ids=config.eos_ids, **sizes)
    return config, calls


def planned_calls(config, mesh, **more):
    """{name: (Program, arguments)} of the plan, compiled for the same devices. more: fields of Workload."""
    drafts = config.num_nextn_predict_layers > 0
    options = AnswerOptions(max_completion_length=LONGEST, slots=SLOTS, speculative=drafts)
    lengths = dict(prompts=len(PROMPTS), n=N, prompt_length=max(map(len, PROMPTS))) | more
    planned = rollout_programs(config, mesh, options, Workload(**lengths))
    arguments = {}

    # Each program is compiled once and its arguments are asked for then
    def watched(program):
        given = program.arguments_after

        def remember(results):
            arguments[program.name] = given(results)
            return arguments[program.name]

        object.__setattr__(program, "arguments_after", remember)
        return program

    calls = {}
    for program, compiled in compile_programs([watched(program) for program in planned]):
        assert compiled.refusal is None, program.name
        calls[program.name] = program, arguments[program.name]
    return calls


@pytest.mark.parametrize(
    "kind, mesh",
    [
        pytest.param("gqa", one_device, id="one device"),
        pytest.param("mtp", one_device, id="drafts", marks=pytest.mark.slow),
        pytest.param("mla_moe", eight_devices, id="eight devices", marks=pytest.mark.slow),
    ],
)
def test_a_planned_rollout_calls_what_the_engine_calls(kind, mesh):
    """Oracle: every call of a real rollout: the same static arguments, shapes and dtypes; where the engine
    passes arrays of the mesh, weights and slots, the same places.
    """
    mesh = mesh()
    config, calls = engines_calls(kind, mesh)
    planned = planned_calls(config, mesh)
    assert planned.keys() == PARTS.keys() and not calls["grow"]
    for name, part in PARTS.items():
        program, arguments = planned[name]
        assert program.function is getattr(decode, part)
        static = [x for x in arguments if not shapes_of(x)]
        shapes = shapes_of(arguments)
        assert calls[part], name
        for real_static, real, _ in calls[part]:
            assert real_static == static
            described = [(x.shape, x.dtype) for x in shapes]
            assert [(x.shape, x.dtype) for x in real] == described
            for ours, theirs in zip(shapes, real, strict=False):
                if theirs.sharding is not None and theirs.sharding.num_devices == mesh.size:
                    assert ours.sharding.is_equivalent_to(theirs.sharding, theirs.ndim), (
                        name,
                        ours,
                    )
        placed = [x for _, real, _ in calls[part] for x in real if x.sharding is not None]
        assert part == "empty_slots" or placed, name


@pytest.mark.parametrize(
    "kind, mesh",
    [
        pytest.param("gqa", one_device, id="one device"),
        pytest.param("mla_moe", eight_devices, id="eight devices", marks=pytest.mark.slow),
    ],
)
def test_all_that_a_device_holds_in_a_rollout_is_planned(monkeypatch, kind, mesh):
    """Oracle: by all arrays on a device of a real rollout when a program is called, the most of its calls;
    caches grow from room for 2 tokens to 4 and 6, and the last growth is planned. The plan leaves out what is
    below 2%.
    """
    monkeypatch.setattr(engine, "FIRST_ROOM", 2)
    monkeypatch.setattr(engine, "GROWTH", 2)
    mesh = mesh()
    config, calls = engines_calls(kind, mesh)
    planned = planned_calls(config, mesh)
    assert planned.keys() == PARTS.keys() | {"grow"}
    assert planned["grow"][0].times == len(calls["grow"]) == 2
    last = calls["grow"][-1]
    ours = shapes_of(planned["grow"][1])
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in last.described]
    for name, (program, arguments) in planned.items():
        held = max(call.held for call in calls[PARTS.get(name, name)])
        assert argument_bytes(arguments) + program.beside_bytes == pytest.approx(held, rel=0.02), (
            name
        )


def test_a_planned_rollout_counts_its_calls():
    """Oracle: the calls of a rollout in which no completion ends early, as no token ends one: the plan counts
    chunks and tokens as the engine does where all slots end together, and calls at most as where none do.
    """
    config, calls = engines_calls("gqa", one_device())
    planned = planned_calls(config, one_device())
    prefills, seats = (planned[name][0].times for name in ("prefill", "seat"))
    assert prefills == len(calls["prefill"]) and seats >= len(calls["seat"])
    turns = -(-len(PROMPTS) * N // SLOTS)
    decode = planned["decode"][0]
    assert decode.token_steps == turns * LONGEST and decode.part == GENERATION
    # By hand: 7 of 15 requests wait for one of 8 slots each, then all end
    assert len(calls["decode"]) <= decode.times == 7 + 1
    assert planned["weights"][0].part == SYNC
    # By hand: a slot's token sees the room of its prompt and half of its completion
    assert decode.flops == SLOTS * forward_flops(config, 16 + LONGEST / 2)
    assert decode.tokens == SLOTS
    rows = planned["prefill"][1][-2].shape
    head = 2 * config.vocab_size * config.hidden_size
    by_hand = 16 * (forward_flops(config, 16 / 2) - head) + head
    assert planned["prefill"][0].flops == pytest.approx(rows[0] * by_hand, rel=1e-12)


def test_logits_count_where_a_program_computes_them():
    """Oracle: the products of the traced programs, which mask the keys that a query does not see: of a prompt
    the logits of one token, of what a conversation reads none, nor, by hand, what the last layer does once
    its keys and values are there.
    """
    config, head, room = tiny_model("gqa")[0], 2 * 50 * 24, 16 + LONGEST
    planned = planned_calls(config, one_device(), turns=2)

    def beyond_layers(name, length, keys):
        program, arguments = planned[name]
        products = matmul_flops(program.function.trace(*arguments).jaxpr)
        rows = program.tokens // length
        return program, rows, products - rows * length * (forward_flops(config, keys) - head)

    prefill, rows, logits = beyond_layers("prefill", 16, keys=16)
    assert logits == rows * head
    half_of_keys = rows * 16 * (forward_flops(config, 16) - forward_flops(config, 16 / 2))
    assert prefill.flops == rows * 16 * (forward_flops(config, 16) - head) + logits - half_of_keys
    read, rows, more = beyond_layers("read 8", 8, keys=room)
    assert more == -rows * 8 * 2 * (2 * 24 * 24 + 3 * 24 * 32 + room * 4 * 12)
    assert read.flops == rows * 8 * (forward_flops(config, 16 + LONGEST / 2) - head)
    # At most: for both turns of each of 15 conversations, and for the text between them
    assert planned["decode"][0].times == 15 * 3


def test_a_plan_leaves_out_what_is_not_asked():
    """Oracle: by hand: one completion a prompt, nothing kept; a program that moves numbers once and
    computes nothing.
    """
    asked = dict(prompts=2, prompt_length=5, n=1, keeps_routing=False, candidates=0)
    assert Workload(2, 5)._asdict() == asked | {"turns": 0}
    work = dict(sizes="", part=GENERATION, times=1, token_steps=0, tokens=0, flops=0.0)
    assert programs._ProgramWork("")._asdict() == work


def test_what_decodes_an_int8_model_takes_the_place_of_its_parameters():
    """Oracle: the compiler's own count: results lie in every byte of the arguments."""
    config, _ = tiny_model("gqa")
    asked, options = Workload(1, 4), AnswerOptions(max_completion_length=LONGEST, slots=SLOTS)
    adapter = AdapterSettings(rank=2, alpha=4.0, quantize="int8")
    weights, *_ = rollout_programs(config, one_device(), options, asked, adapter=adapter)
    ((_, compiled),) = compile_programs([weights])
    assert compiled.refusal is None and compiled.memory.updated == compiled.memory.arguments > 0
