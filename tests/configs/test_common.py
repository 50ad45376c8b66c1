"""Oracle of every test here: the arguments written out by hand."""

import pytest

from configs.common import parse_arg


def test_no_argument_keeps_the_defaults():
    """Oracle: by hand."""
    for arg in (None, ""):
        assert parse_arg(arg, runlocal=False, seed=0).to_dict() == {"runlocal": False, "seed": 0}


def test_values_take_the_types_of_their_defaults():
    """Oracle: by hand; types compared too, since True == 1 == 1.0."""
    parsed = parse_arg("runlocal,seed=3,lr=1,name=a=b", runlocal=False, seed=0, lr=0.1, name="")
    expected = {"runlocal": True, "seed": 3, "lr": 1.0, "name": "a=b"}
    assert parsed.to_dict() == expected
    assert all(type(parsed[key]) is type(value) for key, value in expected.items())


def test_a_bool_can_be_switched_off():
    """Oracle: by hand."""
    assert parse_arg("remat=false", remat=True).remat is False


@pytest.mark.parametrize(
    "arg, words",
    [
        ("runlocl", "did you mean runlocal? allowed: runlocal, seed"),
        ("seed=abc", "seed needs a int, given 'abc'"),
        ("seed=1.5", "seed needs a int, given '1.5'"),
        ("seed", "seed needs a int, given no value"),
        ("runlocal=1", "write --config=FILE:runlocal=true or false"),
        ("seed=1,seed=2", "'seed' is given twice"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(arg, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        parse_arg(arg, runlocal=False, seed=0)
    assert words in str(error.value) and repr(arg) in str(error.value)
