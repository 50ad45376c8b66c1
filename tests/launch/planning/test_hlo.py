"""What one device does in a compiled program, against what its shapes say."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.parallel.bounded import RARE
from deepseek_jax.parallel.round_trip import ROUNDS
from launch.planning.hlo import decoding_costs, program_cost
from tests.rollout.test_tpu_decode import compile_apart

AXES = {"a": 2, "b": 2, "c": 2}
WHOLE, FLOAT = PartitionSpec(), 4
X, WS = jnp.ones((64, 128)), jnp.ones((5, 128, 128))
PRODUCT = 2 * 64 * 128 * 128


def text_of(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


def cost_of(function, *arguments, **options):
    return program_cost(text_of(function, *arguments, **options), AXES)


def chain(x, ws, wrap=lambda f: f):
    """x through tanh(x @ w) for each w of ws, by a scan."""
    return lax.scan(wrap(lambda x, w: (jnp.tanh(x @ w), None)), x, ws)[0]


def nested(x, ws):
    return lax.scan(lambda x, _: (chain(x, ws), None), x, length=3)[0]


def unknown_turns(x, ws):
    return lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ ws[0], x)


def counted_turns(x, ws):
    return lax.fori_loop(3, 10, lambda i, x: jnp.tanh(x @ ws[0]), x)


def gradients(x, ws):
    return jax.grad(lambda x, ws: chain(x, ws, jax.checkpoint).sum(), argnums=(0, 1))(x, ws)


def one_branch(x, ws):
    return lax.cond(x[0, 0] > 0, lambda: x @ ws[0], lambda: x @ ws[0] @ ws[1] @ ws[2])


def both_branches(x, ws):
    return jnp.where(x > 0, x @ ws[0], x @ ws[1])


ROWS = """HloModule rows

ENTRY %main (p0: bf16[100,64], p1: s32[32,8,1], p2: f32[100,64], p3: f32[256,64]) -> f32[100,64] {
  %p0 = bf16[100,64]{1,0} parameter(0)
  %p1 = s32[32,8,1]{2,1,0} parameter(1)
  %p2 = f32[100,64]{1,0} parameter(2)
  %p3 = f32[256,64]{1,0} parameter(3)
  %taken = bf16[32,8,64]{2,1,0} gather(%p0, %p1), offset_dims={2}, slice_sizes={1,64}
  %slots = s32[256,1]{1,0} bitcast(%p1)
  ROOT %sums = f32[100,64]{1,0} scatter(%p2, %slots, %p3), update_window_dims={1}, to_apply=%add
}
"""


def test_rows_of_gathers_and_scatters_are_counted():
    """Oracle: by hand: 32 x 8 rows of 64 numbers, taken in two bytes and added in four."""
    assert program_cost(ROWS, AXES).rows == {64 * 2: 256, 64 * 4: 256}


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x, ws: x @ ws[0], 1),
        (lambda x, ws: chain(x, jnp.concatenate([ws, ws[:2]])), 7),
        (nested, 3 * 5),
        (gradients, 4 * 5),
        (one_branch, 3),
        (both_branches, 2),
        (counted_turns, 7),
        (unknown_turns, 1),
    ],
)
def test_products_count_as_often_as_they_run(function, products):
    """Oracle: by hand: 2 m k n for each of 7 turns, of 3 x 5, of 5 with what remat computes again and two
    gradients, of the longer branch, of both sides of a where, of one turn of a loop that may be any number.
    """
    cost = cost_of(function, X, WS)
    assert cost.flops == {"f32 x f32": products * PRODUCT}
    assert not cost.unknown and not cost.collectives


def decoding(x, ws):
    """Two products before a loop of unknown length, in each turn 7 and a short loop like it, one after."""

    def turn(x):
        x = chain(x, jnp.concatenate([ws, ws[:2]]))
        return lax.while_loop(lambda x: x.max() > 1e9, lambda x: x * 0.5, x)

    x = jnp.tanh(jnp.tanh(x @ ws[0]) @ ws[1])
    return jnp.tanh(lax.while_loop(lambda x: x.sum() < 100, turn, x) @ ws[2])


def test_what_runs_once_a_call_is_no_part_of_a_token():
    """Oracle: by hand: 3 products of a call and 7 of a turn; of both, with one turn, 10, and all their
    operations. A program without such a loop decodes nothing.
    """
    call, token, two_rounds = decoding_costs(text_of(decoding, X, WS), AXES)
    assert call.flops == {"f32 x f32": 3 * PRODUCT} and token.flops == {"f32 x f32": 7 * PRODUCT}
    both = cost_of(decoding, X, WS)
    assert both.flops == {"f32 x f32": 10 * PRODUCT}
    assert both.count == call.count + token.count and 7 < token.count
    assert both.hbm_bytes == call.hbm_bytes + token.hbm_bytes and two_rounds is None
    with pytest.raises(ValueError, match="no loop of unknown length"):
        decoding_costs(text_of(chain, X, WS), AXES)


def test_a_token_in_two_rounds_has_what_is_in_their_loop_twice():
    """Oracle: by hand: three products of a turn, one of them in the loop of the rounds of
    parallel.round_trip, and one in another loop of unknown length. The first loop's is there once more.
    """

    def turn(x):
        with jax.named_scope(ROUNDS):
            x = lax.while_loop(lambda x: x.max() > 1e9, lambda x: jnp.tanh(x @ WS[0]), x)
        x = lax.while_loop(lambda x: x.max() > 1e9, lambda x: jnp.tanh(x @ WS[1]), x)
        return jnp.tanh(x @ WS[2])

    text = text_of(lambda x: lax.while_loop(lambda x: x.sum() < 100, turn, x), X)
    _, token, two_rounds = decoding_costs(text, AXES)
    assert token.flops == {"f32 x f32": 3 * PRODUCT} and two_rounds.flops == {
        "f32 x f32": 4 * PRODUCT
    }
    assert 0 < two_rounds.count - token.count < token.count < two_rounds.count


COUNTED = """
%half (z: f32[8,4]) -> f32[8,4] {
  %z = f32[8,4]{1,0} parameter(0)
  %two = f32[8,4]{1,0} add(%z, %z)
  ROOT %four = f32[8,4]{1,0} multiply(%two, %two)
}

%aside (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  ROOT %negated = f32[8,4]{1,0} negate(%a)
}

%turn (y: f32[8,4]) -> f32[8,4] {
  %y = f32[8,4]{1,0} parameter(0)
  %near = (f32[8,4]{1,0:S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%y)
  %gather = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %fused = f32[8,4]{1,0} fusion(%y), kind=kLoop, calls=%half
  %copied = f32[8,4]{1,0:S(1)} copy-done(%near)
  %square = f32[8,4]{1,0:S(1)} multiply(%copied, %copied)
  %all = f32[64,4]{1,0} all-gather-done(%gather)
  ROOT %sum = f32[8,4]{1,0} all-reduce(%fused), replica_groups=[2,4]<=[8], to_apply=%add
}

%again (y: f32[8,4]) -> pred[] {
  %y = f32[8,4]{1,0} parameter(0)
  ROOT %some = pred[] custom-call(%y), custom_call_target="some"
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %pair = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]{:S(2)}) async-start(%x), calls=%aside
  %end = f32[8,4]{1,0} async-done(%pair)
  ROOT %loop = f32[8,4]{1,0} while(%end), condition=%again, body=%turn
}
"""


def test_operations_and_collectives_are_counted_once():
    """Oracle: by hand: of a token a copy, a gather, a fusion, a product and a sum, where starts and their
    ends are one; the gather alone is asynchronous, and has 7 of the 7 + 2 x 3/4 arrays that are sent. Of a
    call what runs aside.
    """
    call, token, _ = decoding_costs(COUNTED, AXES)
    assert (call.count, call.collective_count) == (1, 0)
    assert (token.count, token.collective_count, token.asynchronous_count) == (5, 2, 1)
    hidden = sum(one.hidden_bytes for one in token.collectives.values())
    x = FLOAT * 8 * 4
    assert hidden == 7 * x and token.sent_bytes == (7 + 2 * 3 / 4) * x


def test_what_runs_beside_the_operations_takes_none_of_their_time():
    """Oracle: by hand: the fusion alone moves bytes as an operation that others wait for: it reads and writes
    an array, as the product of arrays in vector memory does not. The copy, which runs beside them, and both
    collectives, which move bytes while they send, count as traffic.
    """
    _, token, _ = decoding_costs(COUNTED, AXES)
    x = FLOAT * 8 * 4
    assert token.operations == {(0, 2 * x): 1} and token.beside_count == 1
    copied, gathered, fused, summed = x, 1 + 8, 2, 2
    assert token.hbm_bytes == copied + (gathered + fused + summed) * x


def test_a_product_reads_its_operands_and_writes_its_result():
    """Oracle: the bytes of the three arrays."""
    x, w = jnp.ones((128, 256)), jnp.ones((256, 512))
    assert cost_of(jnp.matmul, x, w).hbm_bytes == FLOAT * (128 * 256 + 256 * 512 + 128 * 512)


@pytest.fixture(scope="module")
def mesh():
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=auto)


def ring(x, axes):
    n = math.prod(AXES[axis] for axis in axes)
    return lax.ppermute(x, axes, [(i, (i + 1) % n) for i in range(n)])


COLLECTIVES = {
    "all-reduce": lax.psum,
    "all-gather": lambda x, axes: lax.all_gather(x, axes, tiled=True),
    "reduce-scatter": lambda x, axes: lax.psum_scatter(x, axes, tiled=True),
    "all-to-all": lambda x, axes: lax.all_to_all(x, axes, 0, 0, tiled=True),
    "collective-permute": ring,
}


@pytest.mark.parametrize("turns", [1, 5])
@pytest.mark.parametrize("axes", [("b",), ("a", "c")])
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collectives_count_along_the_axes_that_their_groups_span(kind, axes, turns, mesh):
    """Oracle: by hand: what each of n devices sends in a ring, of an array of 32 KiB each."""

    def turn(x, _):
        return x * COLLECTIVES[kind](x, axes).mean(), None

    def local(x):
        return lax.scan(turn, x, length=turns)[0]

    everywhere = jax.shard_map(local, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False)
    n, size = 2 ** len(axes), FLOAT * X.size
    whole = n * size if kind == "all-gather" else size
    sent = {
        "all-reduce": 2 * size * (n - 1) / n,
        "all-gather": size * (n - 1),
        "reduce-scatter": size * (n - 1) / n,
        "all-to-all": size * (n - 1) / n,
        "collective-permute": size,
    }
    ((key, found),) = cost_of(everywhere, X).collectives.items()
    assert key == (kind, axes) and found.count == turns and found.asynchronous == 0
    assert found.bytes == turns * whole and found.wire_bytes == turns * sent[kind]


def test_a_split_contraction_is_reduced_along_its_axis(mesh):
    """Oracle: by hand: each device multiplies [32 64] by [64 64]; the product [32 64] is summed over b."""
    x = jax.device_put(jnp.ones((64, 128)), NamedSharding(mesh, PartitionSpec("a", "b")))
    w = jax.device_put(jnp.ones((128, 64)), NamedSharding(mesh, PartitionSpec("b", None)))
    cost = cost_of(jnp.matmul, x, w, out_shardings=NamedSharding(mesh, PartitionSpec("a")))
    ((key, found),) = cost.collectives.items()
    assert cost.flops == {"f32 x f32": 2 * 32 * 64 * 64}
    assert key == ("all-reduce", ("b",)) and found.bytes == found.wire_bytes == FLOAT * 32 * 64


TEXT = """
ENTRY %main (x: f32[8,4]) -> f32[8,4] {{
  %x = f32[8,4]{{1,0}} parameter(0)
  ROOT %sum = f32[8,4]{{1,0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add
}}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("c",)),
        ("replica_groups={}", ("a", "b", "c")),
        ("replica_groups=[4,2]<=[8]", ("c",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("a",)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ("a", "c")),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", ("a",)),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", ("b", "c")),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}", ("b",)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y':(2)2}", ("a", "c")),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}", ("a",)),
        ("replica_groups=[8,1]<=[8]", None),
    ],
)
def test_every_notation_of_groups_names_the_same_axes(groups, axes):
    """Oracle: by hand: device 4 a + 2 b + c; which of its numbers a, b, c change within a group."""
    found = program_cost(TEXT.format(groups=groups), AXES).collectives
    assert list(found) == ([("all-reduce", axes)] if axes else [])
    if axes:
        n = 2 ** len(axes)
        assert found["all-reduce", axes].wire_bytes == 2 * FLOAT * 8 * 4 * (n - 1) / n


LOOP = """
%smaller (number: s32[], end: s32[]) -> pred[] {
  %number = s32[] parameter(0)
  %end = s32[] parameter(1)
  ROOT %less = pred[] compare(%number, %end), direction=LT
}

%test (carried: (s32[], f32[8,8])) -> pred[] {
  %carried = (s32[], f32[8,8]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%carried), index=0
  %limit = s32[] constant(10)
  ROOT %again = pred[] CONDITION
}

%turn (before: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %before = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%before), index=0
  %y = f32[8,8]{1,0} get-tuple-element(%before), index=1
  %square = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %after = (s32[], f32[8,8]{1,0}) tuple(%i, %square)
}

ENTRY %main (x: f32[8,8]) -> (s32[], f32[8,8]) {
  %x = f32[8,8]{1,0} parameter(0)
  %first = s32[] constant(3)
  %start = (s32[], f32[8,8]{1,0}) tuple(%first, %x)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%test, body=%turn
}
"""


@pytest.mark.parametrize(
    "condition",
    [
        "compare(%counter, %limit), direction=LT",
        "fusion(%counter, %limit), kind=kLoop, calls=%smaller",
    ],
)
def test_a_loops_turns_are_its_limit_less_its_start(condition):
    """Oracle: by hand: from 3 to 10 are 7 turns."""
    cost = program_cost(LOOP.replace("CONDITION", condition), AXES)
    assert cost.flops == {"f32 x f32": 7 * 2 * 8**3}


OVERLAPPED = """
ENTRY %main (x: f32[8,4]) -> f32[64,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %near = (f32[8,4]{1,0:S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %gather = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
  %copied = f32[8,4]{1,0:S(1)} copy-done(%near)
  %square = f32[8,4]{1,0:S(1)} multiply(%copied, %copied), backend_config={"estimated_cycles":"7"}
  ROOT %all = f32[64,4]{1,0} all-gather-done(%gather)
}
"""


def test_a_started_collective_overlaps_and_vector_memory_is_not_device_memory():
    """Oracle: by hand: the copy to vector memory and the gather each read x; the gather writes 8 of it."""
    cost = program_cost(OVERLAPPED, AXES)
    (found,) = cost.collectives.values()
    x = FLOAT * 8 * 4
    assert (found.count, found.asynchronous, found.bytes, found.wire_bytes) == (1, 1, 8 * x, 7 * x)
    assert cost.hbm_bytes == (1 + 1 + 8) * x and cost.cycles == 7


RETILED = """
%tiles (all: bf16[6,8,4]) -> bf16[6,8,4] {
  %all = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %same = bf16[6,8,4]{2,1,0:T(8,128)(2,1)} copy(%all)
}

%one (stack: bf16[6,8,4], i: s32[]) -> bf16[1,8,4] {
  %stack = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %i = s32[] parameter(1)
  %v = bf16[6,8,4]{2,1,0:T(8,128)(2,1)} fusion(%stack), output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %zero = s32[] constant(0)
  ROOT %layer = bf16[1,8,4]{2,1,0} dynamic-slice(%v, %i, %zero, %zero), dynamic_slice_sizes={1,8,4}
}

%put (old: bf16[6,8,4], new: bf16[1,8,4], j: s32[]) -> bf16[6,8,4] {
  %old = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %new = bf16[1,8,4]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %w = bf16[6,8,4]{2,1,0:T(8,128)(2,1)} fusion(%old), output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %none = s32[] constant(0)
  ROOT %changed = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} dynamic-update-slice(%w, %new, %j, %none, %none)
}

ENTRY %main (x: bf16[6,8,4], k: s32[]) -> bf16[6,8,4] {
  %x = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} parameter(0)
  %k = s32[]{:S(6)} parameter(1)
  %read = bf16[1,8,4]{2,1,0} fusion(%x, %k), kind=kLoop, calls=%one
  ROOT %write = bf16[6,8,4]{2,1,0:T(16,128)(2,1)} fusion(%x, %read, %k), kind=kLoop, calls=%put
}
"""


def test_a_slice_of_a_stack_in_other_tiles_moves_one_layer():
    """Oracle: by hand: one of 6 layers of bf16[8 4] is read and written, then read and written again. libtpu
    0.0.50 changes the tiles of the whole stack within both fusions, for tpu7x; that moves nothing.
    """
    assert program_cost(RETILED, AXES).hbm_bytes == 4 * 2 * 8 * 4


def test_text_that_is_no_program_is_refused():
    """Oracle: the message."""
    with pytest.raises(ValueError, match="as_text"):
        program_cost("HloModule empty", AXES)


def test_a_branch_that_rarely_runs_is_left_out():
    """Oracle: by hand: the product of the other branch, though the rare one has two."""

    def function(rare, x):
        def rarely():
            with jax.named_scope(RARE):
                return x @ x @ x

        return jax.lax.cond(rare, rarely, lambda: x @ x)

    text = jax.jit(function).lower(True, jnp.ones((64, 64))).compile().as_text()
    assert sum(program_cost(text, AXES).flops.values()) == 2 * 64**3


ON_TPU = """
import json
import jax, jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl, topologies
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

P = jax.P

def square(topology):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((2, 2), ("x", "y"), devices=devices, axis_types=types)

mesh = square("v5p:2x2x1")
devices = mesh.devices.flat
alone = jax.sharding.SingleDeviceSharding(devices[0])
texts = {}

def one(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=alone)

def split(*shape, spec, dtype="float32", mesh=mesh):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))

def program(name, function, *arguments, **options):
    with jax.default_device(devices[0]):
        lowered = jax.jit(function, **options).trace(*arguments).lower(lowering_platforms=("tpu",))
        texts[name] = lowered.compile().as_text()

def local(function, spec):
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False)

program("matmul", jnp.matmul, one(8192, 4096), one(4096, 8192))
layers = lambda x, ws: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]
program("layers", layers, one(16, 2048), one(16, 2048, 2048))

def fill(buffer, rows):
    def turn(buffer, row):
        return lax.dynamic_update_slice(buffer, jnp.tanh(row[1])[None], (row[0], 0, 0)), None
    return lax.scan(turn, buffer, (jnp.arange(32), rows))[0]

rows = one(32, 1024, 1024, dtype="float32")
program("fill", fill, one(64, 1024, 1024, dtype="float32"), rows, donate_argnums=0)
program("ragged", lax.ragged_dot, one(8192, 1024), one(8, 1024, 2048), one(8, dtype="int32"))

h, t = 2, 512
causal = masks.MultiHeadMask([masks.CausalMask((t, t))] * h)
attend = splash.make_splash_mha(causal, head_shards=1, q_seq_shards=1)
attention = jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum(), argnums=(0, 1, 2))
program("attention", attention, one(h, t, 192), one(h, t, 192), one(h, t, 128))

def double(x, cost):
    def kernel(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]
    return pl.pallas_call(kernel, x, name="doubler", cost_estimate=cost)(x)

thrice = lambda x, cost=None: lax.scan(lambda x, _: (double(x, cost), None), x, length=3)[0]
program("unknown", thrice, one(256, 256))
estimate = pl.CostEstimate(flops=123, transcendentals=0, bytes_accessed=0)
program("estimated", lambda x: thrice(x, estimate), one(256, 256))

def collective(name, function, spec):
    program(name, local(function, spec), split(8192, 4096, spec=spec))

collective("gather", lambda x: lax.all_gather(x, "x", tiled=True), P("x"))
collective("sum", lambda x: lax.psum(x, ("x", "y")), P(("x", "y")))
scatter = lambda x: lax.all_gather(lax.psum_scatter(x, "y", tiled=True), "y", tiled=True)
collective("scatter", scatter, P())
collective("permute", lambda x: lax.ppermute(x, "x", [(0, 1), (1, 0)]), P("x"))

def prefetch(x, ws):
    w = lax.all_gather(ws[0], "y", tiled=True)
    for i in range(1, 4):
        x, w = jnp.tanh(x @ w), lax.all_gather(ws[i], "y", tiled=True)
    return x @ w

# Gathers that several fusions write are the default on v5e, and the newest libtpu refuses them on v5p
for name, mesh in (("prefetch", square("v5e:2x2")), ("in turn", mesh)):
    inputs = dict(mesh=mesh, in_specs=(P("x"), P(None, "y")), out_specs=P("x"), check_vma=False)
    # More than the vector memory of a chip
    rows = split(65536, 2048, spec=P("x"), dtype="bfloat16", mesh=mesh)
    weights = split(4, 2048, 2048, spec=P(None, "y"), dtype="bfloat16", mesh=mesh)
    program(name, jax.shard_map(prefetch, **inputs), rows, weights)
operands = split(4096, 2048, spec=P(None, "y")), split(2048, 4096, spec=P("y"))
program("product", jnp.matmul, *operands, out_shardings=jax.NamedSharding(mesh, P()))
print("result", json.dumps(texts))
"""
MIB = 2**20


@pytest.fixture(scope="module")
def on_tpu():
    """{program: Cost}"""
    texts = compile_apart(ON_TPU, timeout=300)
    costs = {name: program_cost(text, {"x": 2, "y": 2}) for name, text in texts.items()}
    return costs | {"half filled": program_cost(texts["ragged"], {"x": 2, "y": 2}, filled=0.5)}


def test_a_product_on_tpu_is_exact(on_tpu):
    """Oracle: by hand: 2 m k n, and the bytes of three bfloat16 arrays."""
    cost = on_tpu["matmul"]
    assert cost.flops == {"bf16 x bf16": 2 * 8192 * 4096 * 8192} and cost.cycles > 0
    assert cost.hbm_bytes == 2 * (2 * 8192 * 4096 + 8192 * 8192)


def test_a_scan_on_tpu_reads_every_layer_once(on_tpu):
    """Oracle: by hand: 16 products; 128 MiB of weights, beside which the 64 KiB of rows are nothing."""
    cost = on_tpu["layers"]
    assert cost.flops == {"bf16 x bf16": 16 * 2 * 16 * 2048 * 2048}
    assert cost.hbm_bytes == pytest.approx(128 * MIB, rel=0.05)


def test_an_update_in_place_on_tpu_counts_what_it_writes(on_tpu):
    """Oracle: by hand: 32 rows of 4 MiB are read and written; the buffer of 256 MiB stays where it is."""
    assert on_tpu["fill"].hbm_bytes == pytest.approx(2 * 32 * 4 * MIB, rel=0.01)


def test_kernels_on_tpu_count_by_their_shapes(on_tpu):
    """Oracle: by hand: 2 r d f. Of causal attention half of the square, forward over the widths 192 and 128;
    backward, where scores are computed twice: dq 2 x 192 + 128, dk and dv 2 x 192 + 2 x 128.
    """
    assert on_tpu["ragged"].flops == {"grouped matmul": 2 * 8192 * 1024 * 2048}
    assert on_tpu["half filled"].flops == {"grouped matmul": 8192 * 1024 * 2048}
    half = 2 * 512 * 512
    assert on_tpu["attention"].flops == {
        "splash attention fwd": half * (192 + 128),
        "splash attention dq": half * (2 * 192 + 128),
        "splash attention dkv": half * (2 * 192 + 2 * 128),
    }
    assert not on_tpu["ragged"].unknown and not on_tpu["attention"].unknown


def test_other_kernels_count_by_their_estimate_or_are_named(on_tpu):
    """Oracle: by hand: three turns of a kernel, with an estimate of 123 operations and without one."""
    assert on_tpu["unknown"].unknown == {"doubler": 3} and not on_tpu["unknown"].flops
    assert on_tpu["estimated"].flops == {"doubler": 3 * 123} and not on_tpu["estimated"].unknown


def test_collectives_on_tpu(on_tpu):
    """Oracle: by hand, of an array of 128 MiB, or 64 MiB of a product in float32. A TPU scatters a sum
    through a padded array and exchanges the edge apart: within 1%.
    """
    (gather,) = on_tpu["gather"].collectives.items()
    assert gather[0] == ("all-gather", ("x",)) and gather[1].bytes == 128 * MIB
    (total,) = on_tpu["sum"].collectives.items()
    assert total[0] == ("all-reduce", ("x", "y")) and total[1].wire_bytes == 2 * 32 * MIB * 3 / 4
    scattered = on_tpu["scatter"].collectives["reduce-scatter", ("y",)]
    assert scattered.wire_bytes == pytest.approx(64 * MIB, rel=0.01) and not scattered.asynchronous
    (sent,) = on_tpu["permute"].collectives.items()
    assert sent[0] == ("collective-permute", ("x",)) and sent[1].wire_bytes == 64 * MIB
    assert sent[1].count == sent[1].asynchronous == 1
    assert on_tpu["product"].flops.total() == 2 * 4096 * 1024 * 4096
    (added,) = on_tpu["product"].collectives.items()
    assert added[0] == ("all-reduce", ("y",)) and added[1].bytes == 64 * MIB


def test_a_collective_beside_several_fusions_counts_once(on_tpu):
    """Oracle: by hand: 4 gathers of 8 MiB of weights; with overlap, 3 of them are written again in every
    fusion that they run beside.
    """
    for name, asynchronous in (("prefetch", 3), ("in turn", 0)):
        (found,) = on_tpu[name].collectives.values()
        assert (found.count, found.asynchronous) == (4, asynchronous)
        assert found.bytes == 4 * 8 * MIB and found.wire_bytes == 4 * 8 * MIB / 2
        assert on_tpu[name].flops.total() == 4 * 2 * 32768 * 2048 * 2048
        # Rows, weights and result of a product; a gather's part and result; each part is cut out first
        by_hand = 4 * (128 + 8 + 128) + 4 * (4 + 8) + 2 * 4 * 4
        assert on_tpu[name].hbm_bytes == pytest.approx(by_hand * MIB, rel=0.1)
