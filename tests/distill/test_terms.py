"""The groups of a student's terms."""

from deepseek_jax.distill.terms import OF_DATA, OF_TEACHER, TERMS


def test_groups_of_terms_are_terms():
    """Oracle: by hand: all but l2 and on_policy need data; all but hard and l2 a teacher."""
    assert set(OF_DATA) == set(TERMS) - {"l2", "on_policy"}
    assert set(OF_TEACHER) == set(TERMS) - {"hard", "l2"}
