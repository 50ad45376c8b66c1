"""Programs compiled ahead of time: chains of them, the cache, and refusals."""

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.costs.chips import DEVICES
from deepseek_jax.costs.program import Program
from deepseek_jax.parallel import make_mesh
from launch.planning import compiled as compiling
from launch.planning import stored
from launch.planning.compiled import compile_programs
from launch.planning.hlo import Cost
from launch.planning.hlo_collectives import Collective
from launch.planning.records import CompiledProgram, Memory
from tests.rollout.test_tpu_decode import compile_apart

MESH = make_mesh(data=1, fsdp=4, tensor=2)
WHOLE = PartitionSpec()
ROWS = NamedSharding(MESH, PartitionSpec(("fsdp", "tensor")))
COLUMNS = NamedSharding(MESH, PartitionSpec(None, "tensor"))


@functools.partial(jax.jit, static_argnums=0)
def multiply(times, x, w):
    """[m k] by [k n] -> ({"y": [m n]}, bool[m]), y of one dtype and place, over all of fsdp and tensor."""
    y = jax.lax.with_sharding_constraint(times * x @ w, COLUMNS)
    return {"y": y.astype(jnp.bfloat16)}, jax.lax.with_sharding_constraint(y[:, 0] > 0, ROWS)


@jax.jit
def add(results, bias):
    y, mask = results
    return y["y"] + bias, mask.sum()


def shape(*sizes, dtype="float32", place=WHOLE):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(MESH, place))


def chain(m=64):
    """Two Programs, of which the second takes the first one's results."""
    x, w = shape(m, 16, place=PartitionSpec("fsdp")), shape(16, 32)
    work = dict(tokens=m, flops=2.0 * m * 16 * 32, sizes="")
    first = Program("multiply", multiply, (2, x, w), MESH, **work)
    bias = shape(m, 32, dtype="bfloat16")
    return [
        first,
        Program("add", add, lambda r: (r, bias), MESH, needs=("multiply",), **work),
    ]


def compiled(programs, cache=None):
    return {program.name: found for program, found in compile_programs(programs, cache)}


def test_what_an_earlier_program_left_lies_beside_a_later_one():
    """Oracle: by hand, bytes of one device: of y[64 32] in bfloat16 half and of 64 bits an eighth. One that
    needs them is not planned without them.
    """
    first, _ = chain()
    later = dataclasses.replace(first, name="later", waiting=("multiply",))
    (alone, _), (after, _) = compile_programs([first, later])
    assert not alone.beside and [held.name for held in after.beside] == ["the results of multiply"]
    assert after.beside_bytes == 2 * 64 * 16 + 8
    (_, refused), *_ = compile_programs([later])
    assert refused.refusal == "it needs the results of 'multiply', which was refused"


def test_a_program_takes_anothers_results():
    """Oracle: by hand, bytes of one device: of x[64 16] a quarter, all of w[16 32]; of y[64 32] in bfloat16
    half and of 64 bits an eighth; these and the whole bias are the arguments of the second program. The
    product's columns are halved over tensor.
    """
    found = compiled(chain())
    first, second = found["multiply"], found["add"]
    assert first.memory.arguments == 4 * (16 * 16 + 16 * 32)
    # XLA adds the pointers of a tuple of results
    assert 0 <= first.memory.results - (2 * 64 * 16 + 8) <= 64
    assert first.specs == (COLUMNS.spec, ROWS.spec)
    assert second.memory.arguments == 2 * 64 * 16 + 8 + 2 * 64 * 32
    assert first.memory.peak >= first.memory.arguments


def test_a_donated_argument_is_updated_in_place():
    """Oracle: by hand: the argument that the result replaces."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=ROWS)
    place = PartitionSpec(("fsdp", "tensor"))
    program = Program("step", step, (shape(64, place=place),), MESH, 0, 0.0, "")
    memory = compiled([program])["step"].memory
    assert memory.updated == memory.arguments == memory.results == 4 * 64 / 8


def test_a_plan_that_is_made_again_compiles_nothing(tmp_path, monkeypatch):
    """Oracle: the first plan: equal memory, operations, collectives and shardings, where compiling fails."""
    first = compiled(chain(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2

    def fail(program, lowered):
        raise AssertionError(f"{program.name} is compiled again")

    monkeypatch.setattr(compiling, "_compile", fail)
    again = compiled(chain(), tmp_path)
    assert again == first and again["add"].cost.collectives and again["multiply"].cost.operations
    assert again["multiply"].specs == (COLUMNS.spec, ROWS.spec)
    with pytest.raises(AssertionError, match="multiply is compiled again"):
        compiled(chain(m=128), tmp_path)


def test_every_number_of_a_cost_is_read_again(tmp_path):
    """Oracle: the Cost that was written; none of its fields has its default, so that a new one counts too."""
    cost = Cost(
        flops=Counter(bf16=2.0),
        unknown=Counter(sort=3),
        hbm_bytes=5.0,
        operations=Counter({(7.0, 11.0): 13}),
        count=17,
        beside_count=19,
        collectives={("all-gather", ("fsdp",)): Collective(23, 29, 31.0, 37.0, 39.0)},
        cycles=41.0,
        rows=Counter({43.0: 47.0}),
    )
    defaults = vars(Cost())
    assert all(value != defaults[name] for name, value in vars(cost).items())
    found = CompiledProgram(Memory(*range(1, 1 + len(dataclasses.fields(Memory)))), cost, cost)
    stored.write(tmp_path / "found", found)
    assert stored.read(tmp_path / "found") == found


def test_a_result_has_its_name_only_when_it_is_complete(tmp_path, monkeypatch):
    """Oracle: a write that a full disk ends halfway leaves nothing that a later plan would read."""
    write_text = Path.write_text

    def half(path, text, **options):
        write_text(path, text[: len(text) // 2], **options)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        stored.write(tmp_path / "found.json", CompiledProgram(refusal="it is too large"))
    assert not (tmp_path / "found.json").exists()
    monkeypatch.undo()
    stored.write(tmp_path / "found.json", CompiledProgram(refusal="it is too large"))
    assert stored.read(tmp_path / "found.json").refusal == "it is too large"


def test_programs_of_one_text_compile_once(monkeypatch):
    """Oracle: the calls of the compiler: of three jitted functions two compute the same."""
    compiler, calls = compiling._compile, []

    def counted(program, lowered):
        calls.append(program.name)
        return compiler(program, lowered)

    monkeypatch.setattr(compiling, "_compile", counted)
    x, work = shape(64, 16), dict(tokens=0, flops=0.0, sizes="")
    factors = {"double": 2, "triple": 3, "again": 2}
    programs = [
        Program(name, jax.jit(lambda x, factor=factor: factor * x), (x,), MESH, **work)
        for name, factor in factors.items()
    ]
    found = compiled(programs)
    assert sorted(calls) == ["double", "triple"] and list(found) == list(factors)
    assert found["again"] is found["double"] and found["again"].memory.arguments == 4 * 64 * 16


@pytest.mark.parametrize("changed", ["shape", "mesh", "flags", "version"])
def test_what_a_result_depends_on_names_its_file(tmp_path, monkeypatch, changed):
    """Oracle: by hand: another file for another shape, order of devices, flags of the compiler, and version
    of what is read off; the same for none.
    """
    double = jax.jit(lambda x: 2 * x)

    def program(rows=64, mesh=MESH):
        place = NamedSharding(mesh, PartitionSpec("fsdp"))
        x = jax.ShapeDtypeStruct((rows, 16), "float32", sharding=place)
        return Program("double", double, (x,), mesh, 0, 0.0, "")

    one = program()
    compiled([one], tmp_path)
    if changed == "shape":
        one = program(rows=128)
    elif changed == "mesh":
        one = program(mesh=make_mesh(data=1, fsdp=4, tensor=2, devices=jax.devices()[::-1]))
    elif changed == "flags":
        monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    else:
        monkeypatch.setattr(stored, "VERSION", stored.VERSION + 1)
    compiled([one], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    compiled([one], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    """Oracle: the folder."""
    monkeypatch.chdir(tmp_path)
    compiled(chain()[:1])
    assert not list(tmp_path.iterdir())


TOO_LARGE = """
import json, sys
from pathlib import Path
import jax
from jax.experimental import topologies
from deepseek_jax.costs.program import Program
from deepseek_jax.parallel import make_mesh
from launch.planning.compiled import compile_programs
from launch.planning.hlo import Cost
from launch.planning.hlo_collectives import Collective
from launch.planning.records import CompiledProgram, Memory

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(data=1, fsdp=4, devices=devices)

def program(name, gib, needs=()):
    place = jax.NamedSharding(mesh, jax.P("fsdp"))
    x = jax.ShapeDtypeStruct((4 * gib, 2**28), "float32", sharding=place)
    arguments = (lambda y: (y,)) if needs else (x,)
    return Program(name, jax.jit(lambda x: x + 1), arguments, mesh, 0, 0.0, "", needs=needs)

programs = [
    program("small", 1), program("large", 20), program("after", 1, ("large",)),
    program("then", 1, ("after",)), program("beside", 1, ("small",)),
]
cache = Path(sys.argv[1])
def found():
    return [(p.name, c.refusal, c.memory and c.memory.peak) for p, c in compile_programs(programs, cache)]
print("result", json.dumps([found(), len(list(cache.iterdir())), found()]))
"""


def test_what_exceeds_a_tpu_is_refused_in_the_compilers_words(tmp_path):
    """Oracle: libtpu itself: 20 GiB of arguments for each device of 15.75. What takes the results of a
    refused program is refused too, and everything else is not; all the same from the cache, which has a file
    for each program that was compiled.
    """
    found, files, again = compile_apart(TOO_LARGE, str(tmp_path), timeout=300)
    refusals = {name: refusal for name, refusal, _ in found}
    assert "RESOURCE_EXHAUSTED" in refusals["large"] and "\n" not in refusals["large"]
    assert refusals["after"] == "it needs the results of 'large', which was refused"
    assert refusals["then"] == "it needs the results of 'after', which was refused"
    peaks = {name: peak for name, refusal, peak in found if refusal is None}
    assert peaks.keys() == {"small", "beside"}
    assert all(2 * 2**30 <= peak < DEVICES["TPU v5 lite"].hbm_bytes for peak in peaks.values())
    # "beside" is "small" on its own results: one program
    assert files == 2 and again == found
