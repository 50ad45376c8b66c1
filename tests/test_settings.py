"""Blocks of a config against the dataclasses they should become."""

import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from deepseek_jax.settings import build


@dataclasses.dataclass(frozen=True)
class Clip:
    eps: float = 0.2


@dataclasses.dataclass(frozen=True)
class Loss:
    learning_rate: float
    group_size: int
    loss_type: Literal["grpo", "dapo"] = "grpo"
    clip: Clip = Clip()
    warm: Clip | None = None
    eos_ids: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    extra: dict = dataclasses.field(default_factory=dict)
    where: int | str = 0
    remat: bool = False


NEEDED = {"learning_rate": 0.1, "group_size": 8}


def test_a_block_becomes_the_dataclass_it_describes():
    """Oracle: the dataclass built by hand, nested blocks and tuples included."""
    block = ConfigDict(
        dict(NEEDED, clip=dict(eps=0.3), warm=None, eos_ids=[1, 2], extra=dict(a=dict(b=1)))
    )
    expected = Loss(0.1, 8, clip=Clip(0.3), eos_ids=(1, 2), extra={"a": {"b": 1}})
    built = build(Loss, block, "config.loss")
    assert built == expected and type(built.extra["a"]) is dict


def test_an_int_stands_for_a_float_and_becomes_one():
    """Oracle: by hand."""
    built = build(Loss, dict(NEEDED, learning_rate=1, betas=(0, 1)), "config.loss")
    assert [type(v) for v in (built.learning_rate, *built.betas)] == [float] * 3


def test_a_field_reference_gives_the_value_it_has_now():
    """Oracle: by hand: 2 * 4."""
    config = ConfigDict(dict(n=2, loss=NEEDED))
    config.loss.group_size = config.get_ref("n") * 4
    assert build(Loss, config.loss, "config.loss").group_size == 8


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"lerning_rate": 1.0},
            "config.loss.lerning_rate is not a field; did you mean learning_rate?",
        ),
        ({"zzz": 1.0}, "config.loss.zzz is not a field; allowed: learning_rate, group_size, "),
        ({"clip": {"epps": 1}}, "config.loss.clip.epps is not a field; did you mean eps?"),
        ({"warm": {"epps": 1}}, "config.loss.warm.epps is not a field; did you mean eps?"),
        ({"clip": 3}, "config.loss.clip=3 (int) must be a block with fields eps"),
        ({"learning_rate": "1e-3"}, "config.loss.learning_rate='1e-3' (str) must be a float"),
        ({"learning_rate": True}, "config.loss.learning_rate=True (bool) must be a float"),
        ({"group_size": True}, "config.loss.group_size=True (bool) must be a int"),
        ({"group_size": 8.0}, "config.loss.group_size=8.0 (float) must be a int"),
        ({"group_size": None}, "config.loss.group_size=None (NoneType) must be a int"),
        ({"remat": 1}, "config.loss.remat=1 (int) must be a bool"),
        ({"loss_type": "gpro"}, "config.loss.loss_type='gpro' is not allowed; did you mean grpo?"),
        ({"eos_ids": [1, "a"]}, "config.loss.eos_ids[1]='a' (str) must be a int"),
        ({"eos_ids": 1}, "config.loss.eos_ids=1 (int) must be tuple[int, ...]"),
        ({"betas": [0.9]}, "config.loss.betas=[0.9] (list) must have 2 entries, not 1"),
        ({"where": 1.5}, "config.loss.where=1.5 (float) must be a int or a str"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(change, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        build(Loss, dict(NEEDED) | change, "config.loss")
    assert words in str(error.value)


def test_missing_fields_are_named():
    """Oracle: by hand, the two fields without defaults."""
    with pytest.raises(ValueError, match="config.loss lacks learning_rate, group_size; set config"):
        build(Loss, {}, "config.loss")
