"""What tests.mutants plants in a source, and that a trial of it finds out."""

import pytest

from tests.mutants.__main__ import JUDGED, ROOMS, by_name, sampled
from tests.mutants.changes import mutants_of

SOURCE = '''"""A docstring of 3 words."""

import jax


@jax.jit(static_argnums=1)
def weigh(x, axis: int = 0):
    if x > 1 and not x.ok:
        raise ValueError("more than 1")
    y = jax.lax.stop_gradient(-x) + x.sum(-1, keepdims=True)
    y = dict(zip(x, y, strict=True))
    return jnp.where(y, 2.0, x[0] * x[0])
'''
# By hand, in the order of the source
CHANGES = [
    ("constant", "0", "1"),
    ("comparison", ">", ">="),
    ("constant", "1", "2"),
    ("mask", "and", "or"),
    ("mask", "not x.ok", "x.ok"),
    ("stop_gradient", "jax.lax.stop_gradient(-x)", "(-x)"),
    ("sign", "-x", "x"),
    ("operator", "+", "-"),
    ("axis", "-1", "-2"),
    ("keyword", "keepdims=True", ""),
    ("constant", "True", "False"),
    ("constant", "2.0", "4.0"),
    ("mask", "2.0, x[0] * x[0]", "x[0] * x[0], 2.0"),
    ("constant", "0", "1"),
    ("operator", "*", "/"),
    ("constant", "0", "1"),
]


def mutants(tmp_path, source):
    (tmp_path / "source.py").write_text(source)
    return mutants_of(tmp_path / "source.py", tmp_path)


def test_each_kind_of_change_is_made_where_numbers_and_signs_decide_and_nowhere_else(tmp_path):
    """Oracle: by hand. Texts, messages, decorators, annotations, imports and checks of lengths
    stay as they are.
    """
    found = mutants(tmp_path, SOURCE)
    assert sorted((m.kind, m.old, m.new) for m in found) == sorted(CHANGES)
    assert {m.function for m in found} == {"weigh"}


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_change_is_of_one_place_alone(tmp_path, number):
    """Oracle: Python compiles it, and the old text in the place of the new one gives the source back."""
    mutant = mutants(tmp_path, SOURCE)[number]
    planted = mutant.planted(SOURCE.encode()).decode()
    compile(planted, "planted", "exec")
    end = mutant.begin + len(mutant.new)
    assert planted[: mutant.begin] + SOURCE[mutant.begin : mutant.end] + planted[end:] == SOURCE


def test_a_program_still_runs_only_where_it_is_the_program(tmp_path):
    """Oracle: by hand: what the guard guards can change, and the guard cannot."""
    found = mutants(tmp_path, 'if __name__ == "__main__":\n    run(1 < 2)\nif 3 < 4:\n    pass\n')
    assert {m.line for m in found} == {"run(1 < 2)", "if 3 < 4:"}


def test_a_moved_line_keeps_the_names_of_its_mutants(tmp_path):
    """Oracle: the same source below two more lines; equal changes of one line are told apart by a number."""
    names = [mutant.name for mutant in mutants(tmp_path, SOURCE)]
    moved = SOURCE.replace("import jax\n", "import jax\nimport jax.numpy as jnp\n\n")
    assert [mutant.name for mutant in mutants(tmp_path, moved)] == names
    assert len(set(names)) == len(names)
    assert sum("x[0] * x[0]) | 0 -> 1" in name for name in names) == 2


def test_each_mutant_that_is_judged_is_there_and_has_its_argument():
    """Oracle: the code: a line that has changed is judged anew."""
    there = {mutant.name for room in ROOMS for mutant in sampled(room, 10**6, 0)}
    judged = by_name(JUDGED)
    assert judged.keys() <= there
    for line in judged.values():
        assert line["is"] in ("equivalent", "unscored") and line["why"]
