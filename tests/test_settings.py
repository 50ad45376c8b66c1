"""Blocks of a config against the dataclasses they should become."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.settings import (
    Between,
    Count,
    CountBySteps,
    Natural,
    NonNegative,
    Positive,
    Several,
    Share,
    Weights,
    build,
    spread,
)


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


@dataclasses.dataclass(frozen=True)
class Ranges:
    steps: Count = 1
    pairs: Several = 2
    seed: Natural | None = None
    rate: Positive = 1.0
    weight: NonNegative = 0.0
    share: Share = 0.5
    decay: Annotated[float, Between(0, 1, open_high=True)] = 0.9
    alike: Annotated[float, Between(0, 1, open_low=True)] | None = None
    temperature: Positive | tuple[tuple[Natural, Positive], ...] = 1.0
    rows: CountBySteps = 1
    betas: tuple[Share, ...] = ()
    blocks: dict[str, Clip] = dataclasses.field(default_factory=dict)
    weights: Weights = dataclasses.field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self):
        if self.rate > self.scale:
            raise ValueError(f"rate={self.rate} is above scale={self.scale}")


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
        ({"group_size": True}, "config.loss.group_size=True (bool) must be an int"),
        ({"group_size": 8.0}, "config.loss.group_size=8.0 (float) must be an int"),
        ({"group_size": None}, "config.loss.group_size=None (NoneType) must be an int"),
        ({"remat": 1}, "config.loss.remat=1 (int) must be a bool"),
        ({"loss_type": "gpro"}, "config.loss.loss_type='gpro' is not allowed; did you mean grpo?"),
        ({"eos_ids": [1, "a"]}, "config.loss.eos_ids[1]='a' (str) must be an int"),
        ({"eos_ids": 1}, "config.loss.eos_ids=1 (int) must be a list of int"),
        ({"betas": [0.9]}, "config.loss.betas=[0.9] (list) must have 2 entries, not 1"),
        ({"where": 1.5}, "config.loss.where=1.5 (float) must be an int or a str"),
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


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"pairs": 1}, "pairs=1 must be at least 2"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"rate": 0.0}, "rate=0.0 must be above 0"),
        ({"rate": math.inf}, "rate=inf must be above 0"),
        ({"weight": -0.1}, "weight=-0.1 must be at least 0"),
        ({"weight": math.nan}, "weight=nan must be at least 0"),
        ({"share": 1.5}, "share=1.5 must be within 0..1"),
        ({"decay": 1}, "decay=1 must be at least 0 and below 1"),
        ({"alike": 0.0}, "alike=0.0 must be above 0 and at most 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"temperature": [(0, 1.0), (5, math.nan)]}, "temperature[1][1]=nan must be above 0"),
        ({"temperature": [(0.5, 1.0)]}, "temperature[0][0]=0.5 (float) must be an int"),
        ({"temperature": "1"}, "temperature='1' (str) must be a float or a list of (int, float)"),
        (
            {"rows": [(1, 2)]},
            "rows=[(1, 2)] must be pairs (step, number) whose steps begin at 0 and",
        ),
        ({"rows": [(0, 1), (0, 2)]}, "rows=[(0, 1), (0, 2)] must be pairs (step, number) whose"),
        ({"betas": [0.5, 2]}, "betas[1]=2 must be within 0..1"),
        ({"blocks": {"a": {"epps": 1}}}, "blocks.a.epps is not a field; did you mean eps?"),
        ({"blocks": {"a": 3}}, "blocks.a=3 (int) must be a block with fields eps"),
        ({"blocks": 3}, "blocks=3 (int) must be a block"),
        ({"weights": {"a": 1.0, "b c": math.inf}}, "weights['b c']=inf must be a finite number"),
        ({"weights": {"a": "1"}}, "weights.a='1' (str) must be an int or a float"),
        ({"scale": math.nan}, "scale=nan must be a finite number"),
        ({"rate": 2.0}, "rate=2.0 is above scale=1.0"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_the_range(change, words):
    """Oracle: by hand, the field's full path at the message's beginning."""
    with pytest.raises(ValueError) as error:
        build(Ranges, change, "config.loss")
    assert str(error.value).startswith(f"config.loss.{words}")


def test_numbers_at_the_ends_of_their_ranges_and_named_blocks_are_built():
    """Oracle: the dataclass built by hand."""
    given = dict(
        steps=1, seed=None, weight=0, share=1, decay=0, alike=1, blocks=dict(a=dict(eps=1))
    )
    built = build(Ranges, ConfigDict(given | dict(temperature=[(0, 1), (3, 0.5)])), "config")
    alike = dict(weight=0.0, share=1.0, decay=0.0, alike=1.0, temperature=((0, 1.0), (3, 0.5)))
    assert built == Ranges(steps=1, blocks={"a": Clip(1.0)}, **alike)
    assert type(built.weight) is type(built.temperature[0][1]) is float


def test_an_int_among_weights_stays_one():
    """Oracle: by hand; hashes of stages are of the weights as they were written."""
    weights = build(Ranges, {"weights": {"a": 1, "b": 0.5}}, "config").weights
    assert [type(weight) for weight in weights.values()] == [int, float]


@pytest.mark.parametrize("change", [{"eps": "x"}, {"epps": 1}, 3])
def test_a_block_that_is_built_within_another_path_joins_it(change):
    """Oracle: the path of the caller before the block's own."""
    with pytest.raises(ValueError, match=r"^config.starts.a.clip[.=]"), at("config.starts.a"):
        build(Clip, change, "clip")


@pytest.mark.parametrize(
    "field, value, wanted",
    [
        ("group_size", 3, {"group_size": 3}),
        ("clip", {"eps": 1.0}, {"clip.eps": 1.0}),
        ("warm.eps", 1.0, {"warm.eps": 1.0}),
        ("warm", {"eps": 1.0}, {"warm.eps": 1.0}),
        ("warm", None, {"warm": None}),
        # A block that no hint describes is a block all the same, and its own fields are not known
        ("extra", {"a": {"b": 1}}, {"extra.a": {"b": 1}}),
        ("extra.a.b", 1, {"extra.a.b": 1}),
    ],
)
def test_a_value_sets_the_fields_that_it_names(field, value, wanted):
    """Oracle: by hand."""
    assert dict(spread(Loss, field, value)) == wanted


def test_names_of_the_users_own_are_replaced_as_a_whole():
    """Oracle: by hand: keys of weights and of blocks; below such a key, fields are known again."""
    assert dict(spread(Ranges, "weights", {"a": 1})) == {"weights": {"a": 1}}
    assert dict(spread(Ranges, "blocks", {"a": {}})) == {"blocks": {"a": {}}}
    assert dict(spread(Ranges, "blocks.a", {"eps": 1})) == {"blocks.a.eps": 1}
    with pytest.raises(ValueError, match="^config.blocks.a.esp is not a field; did you mean eps"):
        dict(spread(Ranges, "blocks.a", {"esp": 1}))


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("group_sise", 3, "config.group_sise is not a field; did you mean group_size?"),
        ("clip.epss", 3, "config.clip.epss is not a field; did you mean eps?"),
        ("warm", {"epss": 3}, "config.warm.epss is not a field; did you mean eps?"),
    ],
)
def test_a_field_that_is_not_one_is_refused_before_it_is_set(field, value, words):
    """Oracle: the words of build, which says the same of a whole config."""
    with pytest.raises(ValueError) as error:
        dict(spread(Loss, field, value))
    assert str(error.value).startswith(words)
