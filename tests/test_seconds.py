"""CPU seconds that a default run may take, against cases worked by hand."""

import pytest

from tests.seconds import A_PROGRAM, ABOVE, allowed_seconds

RECORD = {"work": 1.5, "files": {"tests/a.py": 400.0, "tests/b.py": 100.0}}


def test_a_machine_that_works_at_half_the_speed_is_allowed_double():
    """Oracle: 400 + 100 seconds were recorded."""
    assert allowed_seconds(RECORD, 0, work=1.5) == pytest.approx(ABOVE * 500)
    assert allowed_seconds(RECORD, 0, work=3.0) == pytest.approx(ABOVE * 1000)


def test_programs_that_are_compiled_raise_the_limit():
    """Oracle: the record's run compiled none; a slower machine compiles for longer."""
    compiled = 1000 * A_PROGRAM
    assert allowed_seconds(RECORD, 1000, work=1.5) == pytest.approx(ABOVE * (500 + compiled))
    assert allowed_seconds(RECORD, 1000, work=3.0) == pytest.approx(ABOVE * 2 * (500 + compiled))


@pytest.mark.parametrize(
    ("taken", "compiled", "work"),
    [(1104, 0, 1.7), (2151, 16_979, 1.4), (3535, 16_979, 2.4)],
    ids=["read, quick", "compiled, quick", "compiled, slow"],
)
def test_known_runs_are_allowed_and_a_third_more_is_not(taken, compiled, work):
    """Oracle: the CPU seconds of three runs of the same tests, whose record was 867."""
    allowed = allowed_seconds({"work": 1.5, "files": {"all": 867}}, compiled, work)
    assert taken < allowed < taken * 4 / 3
