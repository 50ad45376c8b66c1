"""The results of programs that are not compiled, against the places that the compiler gives them."""

import jax
import pytest

from deepseek_jax.costs.program import argument_bytes
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.programs import Workload, rollout_programs
from deepseek_jax.rollout.settings import AnswerOptions
from launch.planning import compiled as compiling
from launch.planning.by_shapes import results_by_shapes
from launch.planning.compiled import compile_programs
from launch.planning.topology import chosen
from tests.quick import others_slow
from tests.tiny import CONFIGS

MESHES = {
    "whole rows": dict(data=1, fsdp=2, expert=2, tensor=2),
    "context": dict(data=1, fsdp=2, expert=2, context=2),
    "rows alone": dict(data=2, expert=4),
}


def rollout(kind, **axes):
    options = AnswerOptions(max_completion_length=8, slots=16)
    return rollout_programs(CONFIGS[kind], make_mesh(**axes), options, Workload(8, 16, n=2))


def named(programs, *names):
    return [program for program in programs if program.name in names]


@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
@pytest.mark.parametrize("mesh", others_slow(MESHES, "whole rows"))
def test_results_by_shapes_hold_little_more_than_the_compilers(monkeypatch, kind, mesh):
    """Oracle: the places that the compiler gives the results of weights, slots and prefill: each array has
    the same shape and dtype and as many bytes of a device or more, in all at most a twentieth more.
    """
    given = {}

    def recorded(program, lowered, specs):
        given[program.name] = placed(program, lowered, specs)
        return given[program.name]

    placed = compiling._results
    monkeypatch.setattr(compiling, "_results", recorded)
    programs = named(rollout(kind, **MESHES[mesh]), "weights", "slots", "prefill")
    list(compile_programs(programs))
    for program in programs:
        guess, real = (
            results_by_shapes(program, program.arguments_after(given)),
            given[program.name],
        )
        pairs = list(zip(*map(jax.tree.leaves, (guess, real)), strict=True))
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
        assert all(argument_bytes(a) >= argument_bytes(b) for a, b in pairs), program.name
        assert argument_bytes(guess) <= 1.05 * argument_bytes(real), program.name


def test_what_only_lies_beside_a_program_is_not_compiled(monkeypatch):
    """Oracle: by hand: decode takes weights and slots, which are compiled; a chunk's prompts lie beside it,
    as large as where prefill is compiled. A growth takes slots alone, beside prompts that take weights.
    """
    monkeypatch.setattr("deepseek_jax.rollout.engine.FIRST_ROOM", 2)
    monkeypatch.setattr("deepseek_jax.rollout.engine.GROWTH", 2)
    programs = rollout("gqa", data=2, expert=4)

    def compiled(pattern):
        listed = chosen(programs, pattern)
        return {
            p.name: {held.name: held.bytes for held in p.beside}
            for p, _ in compile_programs(listed)
        }

    alone, all_of_them = compiled("decode"), compiled(None)
    assert alone.keys() == {"weights", "slots", "decode"}
    by_shapes = alone["decode"].pop("the results of prefill, by its shapes")
    assert by_shapes == all_of_them["decode"].pop("the results of prefill") > 0
    assert alone["decode"] == all_of_them["decode"]
    grown = compiled("grow")
    assert grown.keys() == {"slots", "grow"}
    assert {f"the results of {name}, by its shapes" for name in ("weights", "prefill")} < grown[
        "grow"
    ].keys()


def test_logits_of_too_few_rows_for_all_devices_leave_the_prompts_split():
    """Oracle: by hand, from the rules of a rollout: the rows of a chunk's caches are split, though it has
    fewer rows than there are devices, so that its logits are whole.
    """
    options = AnswerOptions(max_completion_length=8, slots=16)
    programs = rollout_programs(
        CONFIGS["mla_moe"], make_mesh(data=1, expert=4, fsdp=2), options, Workload(4, 16, n=4)
    )
    weights, prefill = named(programs, "weights", "prefill")
    given = {"weights": results_by_shapes(weights, weights.arguments)}
    caches, logits, *_ = results_by_shapes(prefill, prefill.arguments_after(given))
    assert logits.sharding.is_fully_replicated
    assert all(leaf.sharding.spec[0] == "expert" for leaf in jax.tree.leaves(caches))
