"""A stage is run once for its inputs, and again when one of them changes."""

import dataclasses
import json

import pytest

from deepseek_jax.settings import unhashed
from deepseek_jax.training import lineage
from deepseek_jax.training.lineage import (
    CHECKPOINTS,
    LOG,
    RECORD,
    Inputs,
    content_hash,
    read_record,
    run_stage,
    standing,
)


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

        inputs = Inputs({"settings": settings[name], "parent": parent})
        return run_stage(workdir, name, inputs, make)

    return stage("three", stage("two", stage("one", None)))


def test_unchanged_stages_are_skipped(tmp_path):
    """Oracle: by hand; the files' bytes before."""
    made, settings = [], dict(one=1, two=[2.5], three={"a": None})
    first = chain(tmp_path, made, **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == ["one", "two", "three"]
    assert chain(tmp_path, made, **settings) == first and made == ["one", "two", "three"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_log_has_when_each_stage_began_and_was_complete_by_its_hash(tmp_path, capsys):
    """Oracle: by hand, with the hash of the stage's record; the console has no hash."""
    chain(tmp_path, [], one=1, two=2, three=3)
    hashes = [read_record(tmp_path / name / RECORD)["hash"] for name in ("one", "two", "three")]
    lines = [line.split() for line in (tmp_path / LOG).read_text().splitlines()]
    assert [words[2:] for words in lines] == [
        [name, stage_hash, state]
        for name, stage_hash in zip(("one", "two", "three"), hashes, strict=True)
        for state in ("begun", "complete")
    ]
    out = capsys.readouterr().out
    assert not [stage_hash for stage_hash in hashes if stage_hash in out]


def test_a_changed_setting_reruns_its_stage_and_those_behind_it(tmp_path, capsys):
    """Oracle: by hand."""
    made = []
    chain(tmp_path, made, one=1, two=2, three=3)
    del made[:]
    chain(tmp_path, made, one=1, two=22, three=3)
    assert made == ["two", "three"]
    out = capsys.readouterr().out
    assert "two: settings changed" in out and "three: parent changed" in out
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
                run_stage(tmp_path, "stage", Inputs(inputs), do)
            assert not json.loads((tmp_path / "stage" / "stage.json").read_text())["complete"]
        else:
            run_stage(tmp_path, "stage", Inputs(inputs), do)
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


def test_an_unhashed_field_changes_no_hash():
    """Oracle: the hash of the dict without these fields, whatever they are, in a block within a block too."""

    @dataclasses.dataclass(frozen=True)
    class Loop:
        rate: float
        save_every: int = unhashed(50)
        notes: dict = unhashed(default_factory=dict)

    by_hand = content_hash({"loop": {"rate": 0.5}, "rows": 4})
    for own in ({}, {"save_every": 1}, {"notes": {"a": 1}}):
        assert content_hash({"loop": Loop(0.5, **own), "rows": 4}) == by_hand
    assert content_hash({"loop": Loop(1.0), "rows": 4}) != by_hand


def test_what_a_record_says_besides_its_inputs_changes_no_hash(tmp_path):
    """Oracle: by hand: the record has `about`, and the stage is complete with another one."""
    hashed, made = {"settings": 1}, []
    about = {"start": "before", "checkpoint": "hub/name"}
    run_stage(tmp_path, "one", Inputs(hashed, about=about), made.append)
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert about.items() <= record.items() and record["inputs"].keys() == {"settings"}
    run_stage(tmp_path, "one", Inputs(hashed, about={"start": "elsewhere"}), made.append)
    assert len(made) == 1


def training(num_steps, rate=0.1, continues=True):
    return Inputs({"settings": rate}, num_steps, continues)


def trained(workdir, inputs, interrupted=False):
    """Run a stage of training, which leaves checkpoints, measurements and parameters: -> what it found."""
    found = []

    def make(folder):
        found.extend(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.txt")))
        left = "params/a.txt", "params/b.txt", "before.txt"
        for name in (f"{CHECKPOINTS}/{inputs.num_steps}.txt", *left):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
        if interrupted:
            raise KeyboardInterrupt

    run_stage(workdir, "one", inputs, make)
    return found


def test_more_steps_continue_from_the_checkpoints_and_find_nothing_else(tmp_path, capsys):
    """Oracle: by hand; the record has the number of steps and another hash."""
    trained(tmp_path, training(3))
    first = json.loads((tmp_path / "one" / RECORD).read_text())
    assert trained(tmp_path, training(5)) == ["checkpoints/3.txt"]
    assert "3 steps become 5, so its training goes on" in capsys.readouterr().out
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert (first["num_steps"], record["num_steps"], record["complete"]) == (3, 5, True)
    assert first["hash"] != record["hash"]
    # Complete: nothing is run
    assert trained(tmp_path, training(5)) == []


def test_a_training_that_was_interrupted_continues_with_more_steps(tmp_path):
    """Oracle: by hand."""
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training(3), interrupted=True)
    assert trained(tmp_path, training(5)) == ["checkpoints/3.txt"]


@pytest.mark.parametrize(
    "then",
    [training(2), training(5, continues=False), training(5, rate=0.2), training(None)],
    ids=["fewer steps", "a schedule over all steps", "more steps at another rate", "no steps"],
)
def test_what_does_not_continue_is_run_anew(tmp_path, then):
    """Oracle: by hand; the stage finds an empty folder."""
    trained(tmp_path, training(3))
    assert trained(tmp_path, then) == []
    assert json.loads((tmp_path / "one" / RECORD).read_text())["complete"]


@pytest.mark.parametrize("then", [3, 5, 7])
def test_a_kill_before_a_training_goes_on_leaves_no_complete_stage(tmp_path, monkeypatch, then):
    """Oracle: by hand, of a kill when the parameters were to be removed: with the steps before, with those
    asked for, and with more, the stage is run, from its checkpoints.
    """
    trained(tmp_path, training(3))

    def killed(folder):
        assert not json.loads((tmp_path / "one" / RECORD).read_text())["complete"]
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage, "remove_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training(5))
    monkeypatch.undo()
    assert "checkpoints/3.txt" in trained(tmp_path, training(then))
    assert json.loads((tmp_path / "one" / RECORD).read_text())["complete"]


@pytest.mark.parametrize("then", [3, 5, 7])
def test_a_kill_while_parameters_are_removed_leaves_no_half_of_them(tmp_path, monkeypatch, then):
    """Oracle: by hand: the stage finds its checkpoints and no parameters, with the steps before too: half of
    them would be taken for what it left.
    """
    trained(tmp_path, training(3))

    def killed(folder):
        (folder / "a.txt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage, "remove_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training(5))
    monkeypatch.undo()
    found = trained(tmp_path, training(then))
    assert "checkpoints/3.txt" in found and "params/b.txt" not in found


def test_a_kill_in_a_training_that_goes_on_leaves_what_it_has_trained(tmp_path):
    """Oracle: by hand: with the same steps it resumes; with those before, which are fewer, it begins anew."""
    trained(tmp_path, training(3))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training(5), interrupted=True)
    assert "checkpoints/5.txt" in trained(tmp_path, training(5))
    assert trained(tmp_path, training(3)) == []


def test_how_a_stage_stands(tmp_path):
    """Oracle: by hand: (the inputs that differ, whether it is complete, is dropped, only goes on). Nothing is
    written.
    """

    def stands(inputs):
        found = standing(tmp_path, "one", inputs)
        assert found.record == inputs.record("one")
        return found.changed, found.complete, found.drops, found.grows

    assert stands(training(3)) == ([], False, False, False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training(3), interrupted=True)
    assert stands(training(3)) == ([], False, False, False)
    trained(tmp_path, training(3))
    before = (tmp_path / "one" / RECORD).read_bytes()
    assert stands(training(3)) == ([], True, False, False)
    assert stands(training(5)) == (["num_steps"], False, False, True)
    assert stands(training(5, continues=False)) == (["num_steps"], False, True, False)
    assert stands(training(2)) == (["num_steps"], False, True, False)
    assert stands(training(5, 0.2)) == (["num_steps", "settings"], False, True, False)
    # An input more, and one less
    more = Inputs({"settings": 0.1, "judge": 1}, 3, True)
    assert stands(more) == (["judge"], False, True, False)
    assert stands(Inputs({}, 3, True)) == (["settings"], False, True, False)
    assert (tmp_path / "one" / RECORD).read_bytes() == before


def test_content_that_json_cannot_say_is_an_error():
    """Oracle: json, which would refuse a set."""
    with pytest.raises(TypeError, match="of set has no hash"):
        content_hash({"a": {1}})


@pytest.mark.parametrize("fields, found", [({}, 1), ({"format": 2}, 2), ({"format": 4}, 4)])
def test_a_record_of_another_format_is_refused_and_left_as_it_is(tmp_path, fields, found):
    """Oracle: the file and both formats in the message; the bytes of the stage; nothing is made."""
    made = []
    inputs = Inputs({"settings": Block(**BLOCK)})
    run_stage(tmp_path, "one", inputs, lambda folder: (folder / "result").write_text("old"))
    path = tmp_path / "one" / RECORD
    record = json.loads(path.read_text())
    del record["format"]
    path.write_text(json.dumps(record | fields))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for read in (
        lambda: run_stage(tmp_path, "one", inputs, made.append),
        lambda: standing(tmp_path, "one", inputs),
    ):
        with pytest.raises(
            ValueError, match=f"^{path} has format {found}, .* format {lineage.FORMAT} "
        ):
            read()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not made
