"""A stage is run once for its inputs, and again when one of them changes."""

import dataclasses
import json

import pytest

from deepseek_jax.training import lineage
from deepseek_jax.training.lineage import RECORD, content_hash, run_stage


@dataclasses.dataclass(frozen=True)
class Rates:
    peak: float
    floor: float = 0.1


@dataclasses.dataclass(frozen=True)
class Block:
    num_steps: int
    rates: Rates = Rates(1.0)
    names: tuple = ()
    more: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class NewerRates(Rates):
    ceiling: float = 2.0


@dataclasses.dataclass(frozen=True)
class NewerBlock(Block):
    """Block, after someone has added fields to it and to the block in it."""

    rates: NewerRates = NewerRates(1.0)
    window: int | None = None


BLOCK = dict(num_steps=3, names=("a",), more={"b": 1})


def chain(workdir, made, **settings):
    """Three stages in a row; `made` collects the names of those that are run."""

    def stage(name, parent):
        def make(folder):
            made.append(name)
            (folder / "result").write_text(str(settings[name]))

        inputs = {"settings": settings[name], "parent": parent}
        return run_stage(workdir, name, inputs, make)

    return stage("three", stage("two", stage("one", None)))


def test_unchanged_stages_are_skipped_and_say_so(tmp_path, capsys):
    """Oracle: by hand; the files' bytes before."""
    made, settings = [], dict(one=1, two=[2.5], three={"a": None})
    first = chain(tmp_path, made, **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == ["one", "two", "three"]
    assert chain(tmp_path, made, **settings) == first and made == ["one", "two", "three"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().out.count("unchanged") == 3


def test_a_changed_setting_reruns_its_stage_and_those_behind_it(tmp_path, capsys):
    """Oracle: by hand."""
    made = []
    chain(tmp_path, made, one=1, two=2, three=3)
    del made[:]
    chain(tmp_path, made, one=1, two=22, three=3)
    assert made == ["two", "three"]
    out = capsys.readouterr().out
    assert "stage two: settings changed" in out and "stage three: parent changed" in out
    chain(tmp_path, made, one=1, two=22, three=33)
    assert made == ["two", "three", "three"]


def test_a_stage_that_was_cut_short_finds_what_it_left_and_with_other_inputs_nothing(tmp_path):
    """Oracle: by hand."""
    found = []

    def make(folder):
        found.append(sorted(path.name for path in folder.iterdir()))
        (folder / "half").mkdir()
        raise KeyboardInterrupt

    def again(folder):
        found.append(sorted(path.name for path in folder.iterdir()))

    for inputs, do in (({"a": 1}, make), ({"a": 1}, again), ({"a": 2}, again)):
        if do is make:
            with pytest.raises(KeyboardInterrupt):
                run_stage(tmp_path, "stage", inputs, do)
            assert not json.loads((tmp_path / "stage" / "stage.json").read_text())["complete"]
        else:
            run_stage(tmp_path, "stage", inputs, do)
    assert found == [["stage.json"], ["half", "stage.json"], ["stage.json"]]


def test_a_removal_that_is_cut_short_leaves_no_complete_stage(tmp_path, monkeypatch):
    """Oracle: the stage is run again with its first inputs, and its result is there; nothing else is left."""
    made, settings = [], dict(one=1, two=2, three=3)
    chain(tmp_path, made, **settings)

    def interrupted(folder):
        assert not (folder / "result").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage, "remove_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chain(tmp_path, made, **settings | {"one": 10})
    monkeypatch.undo()
    chain(tmp_path, made, **settings)
    assert made == ["one", "two", "three", "one"] and (tmp_path / "one" / "result").exists()
    chain(tmp_path, made, **settings | {"one": 10})
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"stage.json", "result"}


def test_a_hash_is_of_the_content_and_not_of_the_order_of_keys():
    """Oracle: by hand; the constant holds the hash to the same on every machine."""
    assert content_hash({"a": 1, "b": (2, 3)}) == content_hash({"b": [2, 3], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})
    assert content_hash("马") == content_hash("\u9a6c") == "9676a84c121b933e"


def test_a_dataclass_is_hashed_by_what_differs_from_its_defaults():
    """Oracle: the dict written by hand, fields without a default among it; another class with more fields."""
    by_hand = {"num_steps": 3, "rates": {"peak": 2.0}, "names": ["a"], "more": {"b": 1}}
    assert content_hash(Block(rates=Rates(2.0), **BLOCK)) == content_hash(by_hand)
    assert content_hash([Block(3)]) == content_hash([{"num_steps": 3}])
    assert content_hash(NewerBlock(rates=NewerRates(2.0), **BLOCK)) == content_hash(by_hand)
    assert content_hash(NewerBlock(3, window=4)) == content_hash({"num_steps": 3, "window": 4})


def test_content_that_json_cannot_say_is_an_error():
    """Oracle: json, which would refuse a set."""
    with pytest.raises(TypeError, match="of set has no hash"):
        content_hash({"a": {1}})


@pytest.mark.parametrize("fields, found", [({}, 1), ({"format": 3}, 3)])
def test_a_record_of_another_format_is_refused_and_left_as_it_is(tmp_path, fields, found):
    """Oracle: the file and both formats in the message; the bytes of the stage; nothing is made."""
    made = []
    inputs = {"settings": Block(**BLOCK)}
    run_stage(tmp_path, "one", inputs, lambda folder: (folder / "result").write_text("old"))
    path = tmp_path / "one" / RECORD
    record = json.loads(path.read_text())
    del record["format"]
    path.write_text(json.dumps(record | fields))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=f"^{path} has format {found}, .* format {lineage.FORMAT} "
    ):
        run_stage(tmp_path, "one", inputs, made.append)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not made
